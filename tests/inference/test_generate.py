"Batched and alone, with seeds, stop texts and probabilities."
import math

import pytest
from transformers import AutoModelForCausalLM

from llmft.core import UserError
from llmft.inference.generate import Answer, generate, generate_answers, generate_ids, grow, stream_generate
from llmft.inference.sampling import Sampling
from tests.small import small_model
from tests.tiny import small_tokenizer


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    "A model, its tokenizer, and prompts of many lengths."
    model = AutoModelForCausalLM.from_pretrained(small_model(tmp_path_factory.mktemp('generate')/'model')).eval()
    tokenizer = small_tokenizer()
    texts = ['Add 3', 'Add 4 to a number, please', 'x', 'def add(x):\n    return x + 7 + 7 + 7', '🦙 ç', 'Add']
    return model, tokenizer, [tokenizer.encode(text) for text in texts]


SETTINGS = [{}, {'repetition_penalty': 1.5}, {'temperature': 1.0, 'seed': 1},
            {'temperature': 2.0, 'top_k': 5, 'seed': 2},
            {'temperature': 1.0, 'top_p': .5, 'min_p': .1, 'repetition_penalty': 1.2, 'seed': 3}]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_the_batch_size_changes_nothing(settings, asked):
    alone = generate_ids(*asked, batch_size=1, max_new_tokens=12, **settings)
    for n in (2, 6): assert generate_ids(*asked, batch_size=n, max_new_tokens=12, **settings) == alone
    assert len({*map(tuple, alone)}) > 1


def test_seeds(asked):
    model, tokenizer, prompts = asked
    def drawn(seed, prompts=prompts):
        return generate_ids(model, tokenizer, prompts, max_new_tokens=12, seed=seed, temperature=1.0)
    assert drawn(1) == drawn(1) != drawn(2)
    assert len({*map(tuple, drawn(1, prompts[:1]*4))}) == 4 # the same prompt four times: four answers
    import torch
    torch.manual_seed(5)
    first = drawn(None)
    torch.manual_seed(5)
    assert drawn(None) == first != drawn(None)


def test_like_transformers(asked):
    model, tokenizer, prompts = asked
    import torch
    settings = {'max_new_tokens': 12, 'repetition_penalty': 1.3}
    for ids, made in zip(prompts, generate_ids(model, tokenizer, prompts, **settings)):
        expected = model.generate(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)),
                                  do_sample=False, eos_token_id=2, pad_token_id=0, **settings)
        expected = expected[0, len(ids):].tolist()
        assert made == (expected[:expected.index(2)] if 2 in expected else expected)


@pytest.mark.parametrize('make', [lambda t: t[3:6], lambda t: [t[5:7], 'nowhere'], lambda t: t[0]],
                         ids=['inside', 'one of two', 'the first letter'])
def test_stop(make, asked):
    model, tokenizer, prompts = asked
    settings = {'max_new_tokens': 20, 'temperature': 1.0, 'seed': 4}
    whole, = generate_answers(model, tokenizer, prompts[:1], **settings)
    assert len(whole.text) > 9
    stop = make(whole.text)
    first = min(whole.text.find(s) for s in ([stop] if isinstance(stop, str) else stop) if s in whole.text)
    made, = generate_answers(model, tokenizer, prompts[:1], stop=stop, **settings)
    assert (made.text, made.reason) == (whole.text[:first], 'stop') and len(made.ids) <= len(whole.ids)
    streamed = ''.join(stream_generate(model, tokenizer, prompts[0], stop=stop, **settings))
    assert streamed == made.text # no letter of the stop text gets out


def test_the_length_and_the_end(asked):
    model, tokenizer, prompts = asked
    made, = generate_answers(model, tokenizer, prompts[:1], max_new_tokens=3)
    assert (len(made.ids), made.reason) == (3, 'length')
    end = made.ids[1]
    answer = Answer(prompts[0], tokenizer, Sampling(max_new_tokens=9))
    for id in made.ids:
        if not answer.reason: answer.add(id, {end})
    assert (answer.ids, answer.reason) == (made.ids[:made.ids.index(end)], 'stop')


def test_probabilities(asked):
    import torch
    model, tokenizer, prompts = asked
    settings = {'max_new_tokens': 4, 'temperature': 1.0, 'top_k': 9, 'seed': 1, 'logprobs': 3}
    for made in generate_answers(model, tokenizer, prompts, **settings):
        ids = torch.tensor([made.prompt_ids + made.ids])
        with torch.no_grad(): logits = model(input_ids=ids).logits[0, len(made.prompt_ids) - 1:-1]
        for id, row, (logprob, likeliest) in zip(made.ids, logits.log_softmax(-1), made.logprobs, strict=True):
            assert math.isclose(logprob, row[id].item(), abs_tol=1e-4)
            assert [i for i, _ in likeliest] == row.topk(3).indices.tolist()


def test_a_pause_changes_nothing(asked):
    model, tokenizer, prompts = asked
    settings = {'max_new_tokens': 12, 'temperature': 1.0, 'seed': 1, 'logprobs': 0}
    expected = generate_answers(model, tokenizer, prompts, **settings)
    answers = [Answer(ids, tokenizer, Sampling(**settings), row) for row, ids in enumerate(prompts)]
    while any(a.reason is None for a in answers):
        grow(model, answers[:2], pause=lambda: True)
        grow(model, answers, pause=lambda: True)
    assert [(a.ids, a.text, a.reason) for a in answers] == [(a.ids, a.text, a.reason) for a in expected]
    assert [len(a.logprobs) for a in answers] == [len(a.ids) for a in answers]


@pytest.mark.parametrize('name, value', [
    ('temperature', -1), ('temperature', math.nan), ('temperature', '1'), ('temperature', True), ('top_p', 0),
    ('top_p', 1.1), ('top_k', -1), ('top_k', 1.5), ('min_p', 2), ('repetition_penalty', 0), ('seed', 1.5),
    ('logprobs', 21), ('max_new_tokens', 0), ('max_new_tokens', 2.0), ('stop', ''), ('stop', [1]), ('batch_size', 0),
    ('progres', 1), ('max_tokens', 1)])
def test_a_wrong_value_is_one_message(name, value, asked):
    model, tokenizer, _ = asked
    if name == 'stop' and value == '': value = ['']
    with pytest.raises(UserError, match=name): generate(model, tokenizer, ['a'], **{name: value})
