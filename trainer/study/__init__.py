"""`cfpo study`: a grid of runs over any settings, with paired seeds, done once each.

study_file.py   a study file -> Study
grid.py         axes -> cells and the names of their runs; pure
plan.py         Study -> the runs with their checked configurations, every mistake of every cell at once
records.py      study.json, and what marks a run as done or failed
lane.py         one place where a run after the other is done, in engines that stay up
runner.py       lanes side by side until every run is done
display.py      what the user sees
"""
