"""Small interactive views from core ipywidgets (7.7 and 8), each with a static picture beside it.

One module per view; they share :mod:`comet_lib.widgets.view`.
"""
