"""What masks leave of a network: layer by layer, as text, JSON, CSV, a picture and a web page.

report = pxfast.report.build(masks, model, data)
print(table(report))
plot(report, "report.png")
write_page(report, "report.html")
"""

from pxfast.report.figures import plot
from pxfast.report.layers import Report, Row, build
from pxfast.report.page import page, write_page
from pxfast.report.text import legend, table, to_csv, to_json

__all__ = [
    "Report", "Row", "build", "legend", "page", "plot", "table", "to_csv", "to_json", "write_page",
]  # fmt: skip
