"""What a study shows: its figures, its table and one page with both.

    statistics.py   numbers over seeds and steps: intervals, curves with bands, the definition of a collapse
    figures.py      which axis is a line, which a column; the figures panel by panel, and their drawing
    table.py        a row a cell: final and best reward, validation, collapse, intervals
    report.py       puts it together, with the page

docs/plots.md says how it is read.
"""
