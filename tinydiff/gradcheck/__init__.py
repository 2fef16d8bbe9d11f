"""gradcheck: is a gradient right, and if it is not, what does the error look like?"""

from tinydiff.gradcheck.api import gradcheck
from tinydiff.gradcheck.report import GradientError, Report

__all__ = ["GradientError", "Report", "gradcheck"]
