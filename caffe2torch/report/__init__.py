"""A Report as text, JSON, Markdown or HTML: functions, nothing else."""
