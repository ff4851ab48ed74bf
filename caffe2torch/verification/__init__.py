"""Expected against observed: the rows of the report, what is wrong with them, and what explains many at once."""

from caffe2torch.verification.report import Report
from caffe2torch.verification.verify import verify

__all__ = ["Report", "verify"]
