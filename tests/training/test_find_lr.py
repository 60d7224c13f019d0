"A learning rate that rises: what it shows, and that nothing is left of it."
import math, random
import pytest, torch
from llmft import UserError, find_lr
from llmft.commands.cli import main
from llmft.training.find_lr import RateSearch, _rates, suggest_rate
from tests.small import tree
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('rates')
    save_tiny(folder/'model', tokenizer=small_tokenizer())
    save_rows(folder/'rows.jsonl', alpaca_rows(40))
    return folder


@pytest.fixture
def make(folder, tmp_path):
    def config(**keys):
        keys = {'adapter': 'lora', 'bf16': False, 'sample_packing': False} | keys
        return tiny_config(folder/'model', folder/'rows.jsonl', tmp_path/'run', **keys)
    return config


RATES = _rates(1e-6, 1e-1, 100)

def curve(lowest, noise=0): # flat, falling to `lowest`, then up steeply
    chance = random.Random(1)
    def loss(rate): return 2 - min(rate/lowest, 1)**.5 + max(math.log10(rate/lowest), 0)*4 + noise*chance.gauss(0, 1)
    return [loss(rate) for rate in RATES]


@pytest.mark.parametrize('lowest', [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize('noise', [0, .05, .15])
def test_a_third_of_the_largest_that_works(lowest, noise):
    search = RateSearch(RATES, curve(lowest, noise), 100)
    assert lowest/6 < search.suggestion < lowest and 'A third' in str(search)


@pytest.mark.parametrize('losses, rate, words', [
    ([2.]*100, None, 'did not fall'), ([2 + i/10 for i in range(100)], None, 'did not fall'),
    ([], None, 'did not fall'),
    ([2 - i/100 for i in range(100)], .033, 'low to the end')])
def test_curves_that_say_little(losses, rate, words):
    found, reason = suggest_rate(RATES[:len(losses)], losses)
    assert found == rate and words in reason
    assert RateSearch(RATES[:len(losses)], losses, 100).plot() is not None


@pytest.mark.parametrize('keys', [dict(), dict(adapter='full', learning_rate=1e-5), dict(
    eval_steps=2, save_steps=2, val_set_size=4, lr_scheduler='linear', warmup_ratio=.5, early_stopping_patience=2,
    sample_prompts=['Hi'], eval_generate=True, sweep={'lora_r': [2, 4]}),
    dict(loraplus_lr_ratio=4, optimizer='sgd')], ids=str)
def test_nothing_is_left(make, tmp_path, monkeypatch, keys):
    monkeypatch.chdir(tmp_path)
    before, said = tree(tmp_path), []
    search = find_lr(make(**keys), steps=12, say=lambda x: said.append(str(x)))
    assert tree(tmp_path) == before and len(search.losses) <= 12 and said[-1] == str(search)
    assert search.rates == _rates(1e-6, .1, 12)[:len(search.losses)]


def test_the_rate_really_rises(make, monkeypatch):
    used, step = [], torch.optim.AdamW.step
    def record(self, *args, **kwargs):
        used.append(self.param_groups[0]['lr'])
        return step(self, *args, **kwargs)
    monkeypatch.setattr(torch.optim.AdamW, 'step', record)
    search = find_lr(make(), start=1e-5, end=1e-2, steps=10, say=None)
    used = used[-10:] # the check of the optimizer made steps, too
    assert used == pytest.approx(search.rates) and used[0] == pytest.approx(1e-5) and used[-1] == pytest.approx(1e-2)


def test_it_ends_where_the_loss_breaks_out(make):
    search = find_lr(make(adapter='full', weight_decay=4e9), end=1, steps=40, say=None)
    assert len(search.losses) < 40 and all(map(math.isfinite, search.losses)) and 'broke out at' in str(search)


def test_rows_that_come_again_are_told(make):
    said = []
    find_lr(make(), steps=30, say=lambda x: said.append(str(x)))
    assert any('30 steps take 60 rows, and there are 40' in line for line in said)


@pytest.mark.parametrize('keys, message', [
    (dict(start=0), 'between 0 and 1'), (dict(start=.1, end=.1), 'between 0 and 1'), (dict(end=2), 'between 0 and 1'),
    (dict(start=float('nan')), 'between 0 and 1'), (dict(steps=9), '10 to 10,000'),
    (dict(steps=10**6), '10 to 10,000')])
def test_ranges_that_make_no_sense(make, keys, message):
    with pytest.raises(UserError, match=message): find_lr(make(), **keys)


def test_from_a_shell(make, tmp_path, capsys):
    from llmft import save_config
    save_config(make(), tmp_path/'run.yml')
    def llmft(*args, status=0):
        with pytest.raises(SystemExit) as e: main(['find-lr', str(tmp_path/'run.yml'), *map(str, args)])
        assert (e.value.code or 0) == status
        return ''.join(capsys.readouterr())
    assert 'must end in .png' in llmft('--picture', 'rates.bmp', status=2)
    text = llmft('--steps', 10, '--picture', tmp_path/'new'/'rates.png')
    assert 'learning_rate: ' in text and (tmp_path/'new'/'rates.png').read_bytes()[:4] == b'\x89PNG'
