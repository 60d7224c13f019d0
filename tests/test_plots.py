"Pictures in a real kernel of Jupyter, where figures are shown when their cell ends."
import nbformat
from nbclient import NotebookClient

CELLS = ['from llmft import use_small_figures\nuse_small_figures()',
         'from llmft.plots import plot_lengths, plot_packing\nplot_lengths([1, 2, 3], 5);',
         'plot_packing([[1, 2], [3]], 4);', 'plot_lengths([1, 2, 3], 5);',
         'import matplotlib.pyplot as plt\nplt.plot([1, 2]);']


def test_every_figure_is_shown():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=300).execute()
    pictures = [sum('image/png' in o.get('data', {}) for o in cell.outputs) for cell in notebook.cells]
    assert pictures == [0, 1, 1, 1, 1]
