"""What a trained model is worth, in numbers and pictures: `tinydiff evaluate RUN`, or `evaluate` from Python.

evaluate    the parts in order, their text and files       bits         bits per dimension, term by term
command     the flags                                      features     what the Frechet distance is taken on
subject     the model and its images                       frechet      the distance itself
samplers    the sheet that compares samplers               neighbours   the nearest training images

Nothing is imported here, so that the command line starts quickly.
"""
