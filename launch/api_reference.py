"""Writes the API reference from the docstrings: `python launch/api_reference.py OUT`.

A warning of the generator is an error: a name that does not resolve is a broken page.
"""

import os
import pathlib
import sys
import warnings

import optax
import pdoc

# optax's aliases are unions, a paragraph long in every signature: their names say as
# much.
ArrayTree = type("ArrayTree", (), {"__module__": "chex"})
optax.Params = optax.Updates = optax.OptState = ArrayTree
optax.ScalarOrSchedule = type("ScalarOrSchedule", (), {"__module__": "optax"})
# Shown with the values that the package sees without a command line.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

warnings.simplefilter("error", UserWarning)
# A TypedDict takes the fields of its bases for its own, and pdoc asks whose they are.
warnings.filterwarnings("ignore", "Cannot determine where rfq.rows", UserWarning)
pdoc.render.configure(docformat="google", math=True, footer_text="rfq")
pdoc.pdoc("rfq", "!rfq.__main__", output_directory=pathlib.Path(sys.argv[1]))
