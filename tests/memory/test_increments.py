"What the loss of all scores, DoRA and adapters in 32 bits take: as planned, and as it is in the same step really run."
import functools, json
import pytest, torch
from benchmarks import peft_increments
from tests.memory.test_memory import folders, run_config, small_run, step_as_trained, trainer_of # noqa: F401
from llmft.memory.dryrun import StorageTracker, memory_peaks, model_tensors
from llmft.memory.plan import dry_run, plan_memory
from llmft.model.adapters import add_adapter
from llmft.model.base import load_base, load_hf_config
from llmft.model.gpus import GiB, find_gpu
from llmft.model.loss import chunked_cross_entropy, full_cross_entropy
from tests.tiny import save_tiny

BF16 = functools.partial(torch.autocast, 'cpu', torch.bfloat16)


def compare(config, **options):
    real = memory_peaks(dry_run_on_cpu(config, **options))
    plan = memory_peaks(dry_run(config, load_hf_config(config), find_gpu('CPU'))[0])
    for step in ('start', 'forward', 'backward', 'optimizer', 'end'): assert plan[step][2] == real[step][2], step


def dry_run_on_cpu(config, **options):
    tracker, model = StorageTracker(), load_base(config)
    for t in model_tensors(model): tracker.track(t, 'weights')
    with tracker: model = add_adapter(model, config)
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params: tracker.track(p, 'adapter')
    loss = chunked_cross_entropy if config.chunked_cross_entropy else full_cross_entropy
    step_as_trained(model, config, tracker, loss, params, **options)
    return tracker


@pytest.mark.parametrize('chunked,options', [
    (True, dict(peft_use_dora=True)), (True, dict(lora_target_modules=['gate_proj', 'up_proj', 'down_proj'])),
    (False, dict(peft_use_dora=True, lora_dropout=.1)), (False, dict(lora_target_modules=['down_proj']))], ids=str)
def test_kinds_of_adapters_in_two_formats(folders, chunked, options): # noqa: F811
    config = run_config(folders('llama'), gradient_checkpointing=False, sequence_len=256, bf16=True,
                        chunked_cross_entropy=chunked, **options)
    compare(config, amp=BF16)


@pytest.mark.parametrize('kind,options', [
    ('llama', dict(adapter='full')), ('qwen3', dict(micro_batch_size=3)), ('mixtral', {})], ids=str)
def test_scores_of_all_tokens(folders, kind, options): # noqa: F811
    compare(run_config(folders(kind), gradient_checkpointing=False, chunked_cross_entropy=False, **options))


def test_a_plan_with_the_scores_of_all_tokens():
    def parts(**options): return plan_memory(small_run(gradient_checkpointing=False, **options), 'L4').parts
    scores = 4*1024*49152 # tokens, words
    more = parts(chunked_cross_entropy=False)['logits and loss'] - parts().get('logits and loss', 0)
    assert 8*scores < more < 16*scores # at least twice in 32 bits


def test_the_trainer_makes_the_scores_it_is_told_to(tmp_path):
    folder, losses, shapes = save_tiny(tmp_path/'base'), {}, {}
    for chunked in (True, False):
        trainer = trainer_of(run_config(folder, sequence_len=32, max_steps=1, val_set_size=0,
                                        chunked_cross_entropy=chunked), tmp_path/str(chunked))
        seen = shapes[chunked] = []
        head = trainer.model.get_output_embeddings()
        head.register_forward_hook(lambda module, args, out, seen=seen: seen.append(tuple(out.shape)))
        trainer.train()
        losses[chunked] = trainer.state.log_history[0]['loss']
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert [shape[:2] for shape in shapes[False]] == [(1, 64)]
    assert not [shape for shape in shapes[True] if len(shape) == 3]


@pytest.mark.parametrize('kind', peft_increments.KINDS)
def test_increments_are_those_of_the_page(kind):
    stored = json.loads(peft_increments.RESULTS.read_text(encoding='utf-8'))['GiB']['planned']
    assert peft_increments.planned(kind)/GiB == pytest.approx(stored[kind], abs=.01)
