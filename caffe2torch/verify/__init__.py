"""Expected against observed: the rows of the report, what is wrong with them, and what explains many at once."""

from caffe2torch.report.data import Report
from caffe2torch.verify.rows import verify

__all__ = ["Report", "verify"]
