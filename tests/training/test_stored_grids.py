"The stored runs of the book are those that `benchmarks/book.py` makes."
import math
import pytest

from benchmarks.book import FOLDER, GRIDS, load_config, machine
from llmft.training.stored_grids import final_held_out, read_grid
from llmft.training.sweep import sweep

STORED = sorted(path.stem for path in FOLDER.glob('*.json'))


@pytest.mark.parametrize('name', STORED)
def test_stored_runs_are_those_of_the_script(name):
    grid, made = GRIDS[name], read_grid(name)
    assert (made.question, made.keys) == (grid.question, grid.keys())
    values = [run['values'] for run in made.runs]
    assert values and values == [run for run in grid.runs if run in values] # each once, in their order
    for run in made.runs: assert (run['status'] == 'finished') == math.isfinite(final_held_out(run)), run['name']


@pytest.mark.slow
@pytest.mark.parametrize('name, i', [('rate_and_rank', 1), ('rate_and_rank', 12), ('bits', 2)])
def test_made_again(name, i, tmp_path):
    "Bit for bit on the processor and with the versions that made it, else nearly."
    import torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try: again = sweep(load_config(GRIDS[name].keys(), sweep=[read_grid(name).runs[i]['values']]), tmp_path, say=None)
    finally: torch.set_num_threads(threads)
    stored, made = read_grid(name).runs[i], again.losses()[0]
    if stored['machine'] == machine(): assert made == final_held_out(stored)
    else: assert math.isclose(made, final_held_out(stored), rel_tol=.02)
