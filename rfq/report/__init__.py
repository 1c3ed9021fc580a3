"""Runs become claims, tables, figures and one self-contained page.

`load` reads directories and files of rows into frames, and `view` chooses lines of
them. `evidence` and `judges` decide `claims`. `tables`, `accuracy`, `training`,
`beside`, `figures` and `notes` say what is shown, and `cells` how numbers are written.
`render` draws, and `page` writes. No level of it trains or measures anything.
"""

from rfq.report.load import read as read
from rfq.report.page import run as run
from rfq.report.page import summary as summary
