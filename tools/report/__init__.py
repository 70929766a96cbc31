"""Write the listening page: players, spectrograms, scores and statistics of recordings in HTML that opens from disk.

`tools.report.page.write_page` is what `python -m tools.report` and `cal_metrics.py --report` call. It needs matplotlib
and librosa: `pip install -e '.[report]'`.
"""
