"""The page to listen to results with: players, pictures, scores and statistics in HTML that opens from disk.

`tools.report.page.write_page` is what `scripts/report.py` and `cal_metrics.py --report` call. `tools.inspect.inside` makes the
figures of `scripts/inspect_model.py`. Needs matplotlib, which `pip install -e '.[report]'` installs; so those import
this package late.
"""
