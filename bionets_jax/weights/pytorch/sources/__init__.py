"""The parts of a `model.py` for PyTorch users, as they would be written by hand.

Nothing here is ever imported: `weights.pytorch` reads these files as text and puts together what one
network needs, so that the library itself does not need torch. They are modules and not templates so that
linters and readers see Python.

`.generated` stands for what is decided for each network and does not exist as a file: the constants in
capitals (see `networks.FLAGS`), CONFIG, CLASS_NAMES and create(). An `if` that asks for such constants alone
is decided when the parts are put together, and only the branch that holds is left. The files run on Python
3.9 and torch 2.0.
"""
