"""Runs become tables, figures and one self-contained page.

`load` reads the files of a directory, `join` makes several one, `view` chooses rows,
`claims` judges the paper by them, `tables`, `figures` and `notes` say what is shown,
`counterparts` finds the arms that stand beside the paper's, `render` draws, `page`
writes. No level of it trains or measures anything.
"""

from rfq.report.join import read as read
from rfq.report.page import run as run
from rfq.report.page import summary as summary
