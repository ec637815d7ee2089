"""Measurements as one self-contained HTML file each: no script, no network, readable on a phone and in the dark.

What is given is plain JSON, as the commands write it; nothing of the stages that made it is imported.
"""

from edgetl.report.bench import bench_report
from edgetl.report.export import export_report
from edgetl.report.finetune import finetune_report
from edgetl.report.page import check_report, write_report

__all__ = ["bench_report", "check_report", "export_report", "finetune_report", "write_report"]
