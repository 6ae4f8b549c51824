"""`cfpo study`: a grid of runs over any settings, with paired seeds, done once each.

study_file.py   a YAML file -> StudyFile
cells.py        axes -> cells and the names of their runs; pure
plan.py         StudyFile -> runs with their checked configurations, every mistake of every cell at once
lanes.py        does runs side by side, in engines that stay up
display.py      what the user sees of it
study.py        Study: what is known of a study; to study.json, and back with the logs of its runs
"""
