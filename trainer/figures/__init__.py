"""Pictures as PNG files.

    drawing.py    colours, axes, grids of panels, legends, tables
    plots.py      curves and times of a run
    heat_maps.py  a run's metrics by optimizer step and rollout step
    objective.py  objective and gradient of losses as functions of the ratio (Figure 1 of the CFPO paper)

docs/plots.md says how they are read; a study's are in ``trainer/study_report``.
"""
