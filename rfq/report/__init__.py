"""A compare directory becomes tables, figures and one self-contained page.

`load` reads the files, `view` chooses rows, `claims` judges the paper by them,
`tables`, `figures` and `notes` say what is shown, `render` draws, `page` writes. No
level of it trains or measures anything.
"""

from rfq.report.page import run as run
from rfq.report.page import summary as summary
