"""Small interactive views from core ipywidgets (7.7 and 8), each with a static picture beside it.

One module a view; the common part is in :mod:`comet_lib.widgets.view`.
"""
