"""How good a trained model is, in numbers and pictures: `tinydiff evaluate RUN`, or `evaluate` from Python.

    evaluate    the parts in order, their text and files       bits         bits per dimension, term by term
    subject     the model and its images                       features     the features that the Frechet distance
    compares samplers    the sheet that compares samplers               frechet      the distance itself
                                                               neighbours   the nearest training images

Nothing is imported here, so the command line starts quickly.
"""
