"""What several tests of the command line share."""

from tinydiff.cli import main

HOMEWORK = """
def forward(X, W):
    return X @ W

def backward(L_Y, X, W):
    return L_Y @ W.T, X.T @ L_Y{mistake}
"""


def fails(capsys, arguments, status=2):
    """The one sentence on stderr that a failing command says."""
    assert main(arguments) == status
    out, err = capsys.readouterr()
    assert "Traceback" not in err and out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("tinydiff: ")
    return last
