"""The report: a run folder in, one self-contained HTML page out.

The page is made from the files that studies and fits leave behind, no sample is computed again. Every file is optional:
what is missing is left out. :mod:`~indis.report.tables` turns rows into numbers, :mod:`~indis.report.charts` and
:mod:`~indis.report.plans` draw, :mod:`~indis.report.pictures` sets sample images, :mod:`~indis.report.page` joins them.

====================  ==========================================================================
file                  shown as
====================  ==========================================================================
run.json              the words at the top, and "How this was made"
samples.safetensors   rows of samples from the same noise
fashion.json          results table and dot chart
plans.safetensors     distributions of tau, dtau and gamma over instances
curves.json           learning curves
toy.json              toy tables and error curves (paper, Fig. 3)
toy_scatter...        toy error over the starting point (paper, Fig. 2)
====================  ==========================================================================
"""
