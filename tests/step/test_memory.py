"""Laws of memory: beyond AdamW's two moments, nothing that grows with the parameters."""

import copy
import gc
import tracemalloc
import weakref

import pytest
import torch
from helpers.small_runs import make_grad, make_optimizer, params_of, set_grads, train
from torch.autograd.profiler import profile

TILE, TILES_PER_CHUNK = 1024, 16
# What one step allocates, in bytes: pointers of moved gradients and their differences (CPU: four
# int64 per tensor), the group table and a few numbers.
PER_TENSOR, CONSTANT = 64, 1024


def allocated(step):
    """Bytes that torch allocates on the CPU in a call: the sum over operators, not the peak."""
    with profile(use_device=None, profile_memory=True) as profiler:
        step()
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiler.function_events)


def graddrop_by_hand(params):
    """A step of eager GradDrop: draw a mask, multiply, AdamW."""
    optimizer = torch.optim.AdamW(params, fused=True)

    def step():
        for param in params:
            param.grad.mul_(torch.rand_like(param.grad) >= 0.5)
        optimizer.step()

    return step


def plan_bytes(optimizer):
    """Bytes of all tensors that the optimizer holds beyond parameters, gradients and state."""
    own = {tensor.untyped_storage().data_ptr() for tensor in params_of(optimizer)}
    for state in optimizer.state.values():
        own |= {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    found, seen, queue = {}, set(), [optimizer._plan_cache.latest, optimizer._counters]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type) or callable(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif type(thing).__module__.startswith("graddrop") or isinstance(
            thing, list | tuple | dict
        ):
            queue += gc.get_referents(thing)
    return sum(size for pointer, size in found.items() if pointer not in own)


@pytest.mark.parametrize("granularity", ["element", "row", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_allocates_nothing_that_grows(dtype, granularity):
    """CPU kernel: the first step allocates the moments, later ones a few bytes per tensor."""
    later_bytes = set()
    for n_rows in (100, 1000):
        shapes = ((n_rows, 64), (n_rows, 33), (n_rows,))
        n_elements = n_rows * (64 + 33 + 1)
        optimizer = make_optimizer("cpu", shapes=shapes, dtype=dtype, granularity=granularity)
        set_grads(params_of(optimizer), 0)
        moments = 2 * 4 * n_elements
        first = allocated(optimizer.step)
        tables = plan_bytes(optimizer)
        assert moments <= first <= moments + 3 * tables + PER_TENSOR * 3 + CONSTANT
        held = [param.grad for param in params_of(optimizer)]  # so that the next ones lie elsewhere
        set_grads(params_of(optimizer), 1)
        later = allocated(optimizer.step)
        assert later <= PER_TENSOR * len(held) + CONSTANT
        later_bytes.add((later, tables))
    assert len(later_bytes) == 1, later_bytes  # the same for ten times the elements


def test_python_allocates_nothing_that_grows():
    """Objects on Python's side: the same few for ten times the elements."""
    peaks = []
    for n in (10_000, 100_000):
        optimizer = make_optimizer("cpu", shapes=((n,),) * 5)
        train(optimizer, 2)
        set_grads(params_of(optimizer), 2)
        tracemalloc.start()
        optimizer.step()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 64 * 1024 and abs(peaks[1] - peaks[0]) < 1024, peaks


def test_eager_graddrop_allocates():
    """Control: the same counter sees the mask that eager GradDrop draws, 4 + 1 bytes per entry."""
    for n in (1000, 100_000):
        optimizer = make_optimizer(shapes=((n,),))
        set_grads(params_of(optimizer), 0)
        step = graddrop_by_hand(params_of(optimizer))
        step()
        assert allocated(step) >= 5 * n


def test_state_is_two_moments_and_a_number(backend, device):
    """State per parameter: two moments of its size, one float32."""
    shapes = ((5, 7), (70,), (), (0, 3))
    optimizer = make_optimizer(backend, device, shapes)
    train(optimizer, 1)
    for param in params_of(optimizer):
        state = optimizer.state[param]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert state["step"].untyped_storage().nbytes() == 4
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            assert moment.untyped_storage().nbytes() == 4 * param.numel()


def test_tables_grow_with_the_number_of_tensors(backend, device):
    """Kept between steps: under 336 bytes per tensor, and on the GPU 8 bytes per 16,384 entries."""
    n_entries = 3 * TILES_PER_CHUNK * TILE + 5  # four chunks
    shapes = ((5, 8),) * 20 if backend == "triton" else ((5, 8),) * 20 + ((n_entries,),) * 3
    optimizer = make_optimizer(backend, device, shapes)
    train(optimizer, 1)
    assert plan_bytes(optimizer) <= 336 * len(shapes) + CONSTANT
    if backend == "triton":
        assert plan_bytes(optimizer) >= 14 * 8 * len(shapes)  # control: the tables are seen


@pytest.mark.gpu
def test_the_chunk_list_is_eight_bytes_per_chunk(monkeypatch):
    """Triton: 8 bytes for each 16 tiles of a tensor, and nothing else that grows."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from graddrop.kernels.gpu import launch

    monkeypatch.setattr(launch.TritonStep, "step", lambda *_: None)  # the kernels need not run
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = []
    for n_chunks in (41, 81):  # fewer have fewer tiles each
        optimizer = make_optimizer("triton", device, ((n_chunks * TILES_PER_CHUNK * TILE,),))
        set_grads(params_of(optimizer), 0)
        optimizer.step()
        sizes.append(plan_bytes(optimizer))
    assert sizes[1] - sizes[0] == 8 * 40


def test_a_loaded_state_replaces_the_old_one(backend, device):
    """Nothing holds on to the moments from before: loading does not double the memory."""
    optimizer = make_optimizer(backend, device, ((5, 7), (70,)))
    train(optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    old = [weakref.ref(t) for state in optimizer.state.values() for t in state.values()]
    assert all(reference() is not None for reference in old)  # control
    optimizer.load_state_dict(saved)
    gc.collect()
    assert all(reference() is None for reference in old)


def test_gradients_are_free_between_steps(backend, device):
    """After zero_grad() nothing of the optimizer holds a gradient, the first one included."""
    optimizer = make_optimizer(backend, device, ((5, 7), (70,)))
    for step in range(2):
        set_grads(params_of(optimizer), step)
        grads = [weakref.ref(param.grad) for param in params_of(optimizer)]
        optimizer.step()
        assert all(grad() is not None for grad in grads)  # control
        optimizer.zero_grad()
        assert [grad() for grad in grads] == [None, None]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_the_gpu_allocates_nothing_that_grows():
    """Peak of the GPU's allocator over a step: the tables' upload, not the parameters' size."""
    optimizer = make_optimizer("triton", "cuda", ((4096, 4096), (1000, 33)))
    train(optimizer, 2)
    params = params_of(optimizer)
    for index, param in enumerate(params):
        param.grad = make_grad(param, index, 2)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 64 * 1024
    assert torch.cuda.memory_allocated() - before <= 64 * 1024
