"A merged model answers like base and adapter, or it is not written."
from pathlib import Path

import pytest
import torch

import llmft.export.merge as merge
from llmft.core import UserError
from llmft.export.stream import StreamedMerge
from llmft.inference.load import load_run
from tests.small import SIZES, small_run
from tests.tiny import save_tiny, small_tokenizer

EMBEDDINGS = {
    'list': {'lora_target_modules': ['q_proj', 'v_proj', 'embed_tokens']},
    'pattern': {'lora_target_modules': '.*(q_proj|embed_tokens)'},
    'DoRA': {'lora_target_modules': ['embed_tokens'], 'peft_use_dora': True},
    'qlora': {'lora_target_modules': ['q_proj', 'embed_tokens'], 'adapter': 'qlora'},
    'copy': {'lora_target_modules': ['q_proj'], 'lora_modules_to_save': ['embed_tokens']},
    'new token': {'tokens': ['<call>']},
    'some tokens': {'lora_target_modules': ['q_proj'], 'peft_trainable_token_indices': [3, 4]},
    'blocks': {'peft_layer_replication': [[0, 2], [1, 2]]},
    'plain': {},
}
PARTED = ('list', 'pattern', 'DoRA', 'qlora', 'copy')


@pytest.mark.parametrize('name', EMBEDDINGS)
@pytest.mark.parametrize('tied', [True, False])
def test_merged_is_the_run(name, tied, tmp_path):
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), tie_word_embeddings=tied, **SIZES)
    run = small_run(tmp_path, base_model=str(model), **EMBEDDINGS[name])
    merged = load_run(merge.merge_adapter(run, tmp_path/'merged')).model
    expected = load_run(run, quantized=False).model
    ids = torch.arange(60)[None]
    with torch.no_grad(): difference = (merged(ids).logits - expected(ids).logits).abs().max()
    assert difference < 2e-3
    assert merged.config.tie_word_embeddings == (tied and name not in PARTED)


def test_a_wrong_merge_is_not_written(tmp_path, monkeypatch):
    run, right = small_run(tmp_path), StreamedMerge.rows
    def wrong(*args): return ((part, before, after.flip(0)) for part, before, after in right(*args))
    write = StreamedMerge.write
    def write_wrong(*args):
        with monkeypatch.context() as patched:
            patched.setattr(StreamedMerge, 'rows', wrong)
            return write(*args)
    monkeypatch.setattr(StreamedMerge, 'write', write_wrong)
    with pytest.raises(UserError, match='does not come from this base model'):
        merge.merge_adapter(run, tmp_path/'merged')
    assert not (tmp_path/'merged').exists()
    assert {p.name for p in tmp_path.iterdir()} == {'model', 'run', 'data.jsonl'}


def test_files_can_be_read_by_all(tmp_path):
    run = small_run(tmp_path)
    out = merge.merge_adapter(run, tmp_path/'merged')
    assert {oct(p.stat().st_mode & 0o777) for p in Path(out).rglob('*') if p.is_file()} == {'0o644'}


@pytest.mark.parametrize('error', [MemoryError(), RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')])
def test_out_of_memory(error, tmp_path, monkeypatch):
    run = small_run(tmp_path)
    def fail(*_): raise error
    monkeypatch.setattr(StreamedMerge, 'write', fail)
    with pytest.raises(UserError, match='Memory ran out while merging'): merge.merge_adapter(run, tmp_path/'merged')
    assert not (tmp_path/'merged').exists()


def test_folders_that_are_no_runs(tmp_path):
    run = small_run(tmp_path)
    with pytest.raises(UserError, match='this is an adapter. Give the run folder'):
        merge.merge_adapter(run/'adapter', tmp_path/'merged')
    with pytest.raises(UserError, match='this is a whole model already'):
        merge.merge_adapter(tmp_path/'model', tmp_path/'merged')
    assert not (tmp_path/'merged').exists()
