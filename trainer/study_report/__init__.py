"""What a study shows: its figures, its table and one page with both.

    reading.py     a study directory -> runs with their numbers by rollout step, and what is missing
    axes.py        which axis is a line, which a column; names of cells
    statistics.py  intervals over seeds, smoothing, the definition of a collapse
    curves.py      one metric of several seeds -> mean and band
    pictures.py    which figures a study has, panel by panel, with their captions
    figures.py     draws them
    objective.py   objective and gradient of losses as functions of the ratio (Figure 1 of the CFPO paper)
    table.py       a row a cell: final and best reward, validation, collapse, intervals
    page.py        the page

``report.py`` puts it together; docs/plots.md says how it is read.
"""
