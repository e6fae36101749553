"""The report: a run folder in, one self-contained HTML page out.

The page is made from the files that studies and fits leave behind, no sample is computed again.
Every file is optional: what is missing is left out. Rows become numbers in
:mod:`~indis.bench.report.tables`, and those of a comparison in
:mod:`~indis.bench.report.comparison` and :mod:`~indis.bench.report.results_table`, which also
writes markdown. Figures are drawn by :mod:`~indis.bench.report.charts`,
:mod:`~indis.bench.report.compare_charts`, :mod:`~indis.bench.report.lines` and
:mod:`~indis.bench.report.plans`; :mod:`~indis.bench.report.pictures` sets sample images,
:mod:`~indis.bench.report.page` joins them.

====================  ==========================================================================
file                  shown as
====================  ==========================================================================
run.json              the words at the top, and "How this was made"
samples.safetensors   rows of samples from the same noise
results.json          tables and figures of a comparison, one set a model
plans.safetensors     distributions of tau, dtau and gamma over instances
curves.json           learning curves
toy.json              toy tables and error curves (paper, Fig. 3)
toy_scatter...        toy error over the starting point (paper, Fig. 2)
<model>/results.json  all of the above for each model, as `indis bench compare` leaves them
====================  ==========================================================================
"""
