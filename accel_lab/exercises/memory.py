"""Exercises of chapter 15: recomputation with a second input, an update whose state is dealt out,
and as few segments as fit. The ranks' messages are carried, and counted, by whoever judges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint

from accel_lab.exercises import Case, Exercise, LessMemory, Wrong, changed
from accel_lab.exercises._data import normal

WIDTH = 6

# ---- build: recomputation with a second input ----


def recompute_with_cases(rng: random.Random) -> Iterator[Case]:
    for learn_x, learn_context in ((False, False), (True, False), (True, True)):
        n = rng.randrange(8, 16)
        yield {
            "x": normal(rng, n, WIDTH),
            "context": normal(rng, n, WIDTH),
            "segments": [
                [normal(rng, WIDTH, WIDTH) for _ in range(rng.randrange(1, 4))] for _ in range(3)
            ],
            "x learns": learn_x,
            "context learns": learn_context,
            "seed": rng.randrange(1000),
        }


def recompute_with_large(rng: random.Random) -> Case:
    return {
        "x": normal(rng, 2048, 64),
        "context": normal(rng, 2048, 64),
        "segments": [[normal(rng, 64, 64) / 8 for _ in range(8)] for _ in range(24)],
        "x learns": True,
        "context learns": False,
        "seed": 0,
    }


def recompute_with_drive(answer, case):
    import torch

    class Segment(torch.nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.weights = torch.nn.ParameterList([weight.clone() for weight in weights])
            self.register_buffer("mean", weights[0].new_zeros(weights[0].shape[0]))

        def forward(self, x, context):
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)  # a running statistic
            for weight in self.weights:
                drawn = (torch.rand(x.shape) < 0.7).to(x.dtype)  # a dropout mask
                x = torch.tanh(x @ weight.to(x.dtype)) * drawn + 0.1 * context
            return x

    segments = [Segment(weights) for weights in case["segments"]]
    x = case["x"].clone().requires_grad_(case["x learns"])
    context = case["context"].clone().requires_grad_(case["context learns"])
    torch.manual_seed(case["seed"])
    out = x
    for segment in segments:
        out = answer(segment, out, context)
    returned = {"output": out.detach(), "drawn after the forward pass": float(torch.rand(()))}
    if out.requires_grad:
        out.square().mean().backward()
    returned["drawn after the backward pass"] = float(torch.rand(()))
    learned = {"x": x, "context": context} if case["context learns"] else {"x": x}
    for place, segment in enumerate(segments):
        for layer, weight in enumerate(segment.weights):
            learned[f"weight {layer} of segment {place}"] = weight
        returned[f"running mean of segment {place}"] = segment.mean.clone()
    for name, tensor in learned.items():
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        returned[f"gradient of {name}"] = gradient.to(tensor.dtype)
    return returned


def recompute_with(run, x, context):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, context, *parameters):
            ctx.rng = torch.get_rng_state()
            ctx.save_for_backward(x, context)
            return run(x, context)

        @staticmethod
        def backward(ctx, *gradient):
            x, context = (
                one.detach().requires_grad_(needed)
                for one, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
            )
            buffers = {name: buffer.clone() for name, buffer in run.named_buffers()}
            with torch.enable_grad(), torch.random.fork_rng():
                torch.set_rng_state(ctx.rng)
                y = torch.func.functional_call(run, buffers, (x, context))
            every = (x, context, *run.parameters())
            found = iter(
                torch.autograd.grad(y, [one for one in every if one.requires_grad], gradient)
            )
            return tuple(next(found) if one.requires_grad else None for one in every)

    return Again.apply(x, context, *run.parameters())


def _keeps_the_graph(run, x, context):
    return run(x, context)


def _by_torch(run, x, context):
    return checkpoint(run, x, context, use_reentrant=False)


def _by_torch_reentrant(run, x, context):
    return checkpoint(run, x, context, use_reentrant=True)


def _inputs_alone(run, x, context):
    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, context):
            ctx.rng = torch.get_rng_state()
            ctx.save_for_backward(x, context)
            return run(x, context)

        @staticmethod
        def backward(ctx, *gradient):
            x, context = (
                one.detach().requires_grad_(needed)
                for one, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
            )
            buffers = {name: buffer.clone() for name, buffer in run.named_buffers()}
            with torch.enable_grad(), torch.random.fork_rng():
                torch.set_rng_state(ctx.rng)
                y = torch.func.functional_call(run, buffers, (x, context))
            torch.autograd.backward(y, gradient)
            return x.grad, context.grad

    return Again.apply(x, context)


def _without_a_graph(run, x, context):
    with torch.no_grad():
        return run(x, context)


KEEPS_THE_GRAPH = Wrong(
    _keeps_the_graph,
    "All is right, and all activations are kept. Run the module without a graph first, as the "
    "forward of a torch.autograd.Function does, and again with one in its backward.",
)
STATE = "            ctx.rng = torch.get_rng_state()\n"
OWN_BUFFERS = "torch.func.functional_call(run, buffers, (x, context))"

RECOMPUTE_WITH = Exercise(
    name="recompute_with",
    points=3,
    task="""The blocks of a decoder take two tensors: `run(x, context)`. Write
`recompute_with(run, x, context)`: it returns what `run(x, context)` returns, keeps the two inputs
alone, and computes the rest again in the backward pass.

All gradients must be those of `run(x, context)`: of x and of context where they need one, and of
run's parameters always, even where neither input needs a gradient. `run` draws random numbers
(a dropout mask) and has a running statistic, a buffer: the mask must be the same in both passes,
the statistic is updated once, and the random numbers that come afterwards are those that would have
come without you. On a chain of 24 large segments you have 100 MB; the system counts them.""",
    cases=recompute_with_cases,
    drive=recompute_with_drive,
    reference=recompute_with,
    reasoning="""The forward of an `autograd.Function` runs without a graph, so that what it
computes is freed. It keeps its inputs and the state of the random numbers. The parameters are
inputs of the Function as well: so its output needs a gradient even where x does not, and their
gradients are returned like those of x. The backward runs the module again, with a graph, from
detached inputs, with the same random numbers, inside of `fork_rng`, which puts the later state back
afterwards; and on copies of the buffers, so that the second run updates no statistic.""",
    wrong=(
        KEEPS_THE_GRAPH,
        Wrong.changed(
            recompute_with,
            "                torch.set_rng_state(ctx.rng)\n",
            "",
            "The second run draws another dropout mask than the first, so the gradients belong to "
            "another network. Keep the state of the random numbers, and set it again.",
        ),
        Wrong.changed(
            recompute_with,
            "with torch.enable_grad(), torch.random.fork_rng():",
            "with torch.enable_grad():",
            "After backward the random numbers are those of an earlier moment: the masks of the "
            "next batch repeat old ones. Put the later state back: torch.random.fork_rng().",
        ),
        Wrong.changed(
            recompute_with,
            OWN_BUFFERS,
            "run(x, context)",
            "The gradients are right, and the running statistic was updated twice. Run it the "
            "second time on copies of the buffers: torch.func.functional_call.",
            also=(_by_torch,),
        ),
        Wrong.changed(
            recompute_with,
            "return tuple(next(found) if one.requires_grad else None for one in every)",
            "return (*(next(found) if one.requires_grad else None for one in every[:2]), "
            "*(None for _ in every[2:]))",
            "The parameters get no gradient, so nothing is learned. Return theirs, too, in the "
            "order in which they were handed to apply.",
        ),
        Wrong(
            _without_a_graph,
            "The output has no graph, and no gradient comes back through it. Run the module "
            "in the forward of a torch.autograd.Function, whose backward runs it again.",
        ),
        Wrong.changed(
            recompute_with,
            STATE + "            ctx.save_for_backward(x, context)\n"
            "            return run(x, context)\n",
            "            ctx.save_for_backward(x, context)\n"
            "            y = run(x, context)\n" + STATE + "            return y\n",
            "You keep the state of the random numbers after the first run, which has drawn its "
            "mask by then. Keep it before.",
        ),
        Wrong.changed(
            recompute_with,
            "return tuple(next(found) if one.requires_grad else None for one in every)",
            "back = [next(found) if one.requires_grad else None for one in every]\n"
            "            return (back[0], None, *back[2:])",
            "The gradient of context is missing. It is an input like x: return its gradient, too, "
            "where it needs one.",
        ),
        Wrong.changed(
            recompute_with,
            "with torch.enable_grad(), torch.random.fork_rng():",
            "with torch.random.fork_rng():",
            "Inside of backward no graph is made unless you ask for it: run the module there "
            "under torch.enable_grad().",
        ),
        Wrong(
            _by_torch_reentrant,
            "The reentrant kind of torch's checkpoint gives no gradient at all where neither input "
            "needs one: run's parameters are not among its inputs. And its second run updates the "
            "statistic again.",
        ),
        Wrong(
            _inputs_alone,
            "Where neither x nor context needs a gradient, no parameter gets one: autograd takes "
            "the output for a constant. Hand the parameters to apply as well.",
        ),
        Wrong.changed(
            recompute_with,
            "return tuple(next(found) if one.requires_grad else None for one in every)",
            "return (None, None, *list(found)[-len(every[2:]):])",
            "The parameters' gradients of the last segment are right, and x gets none: the "
            "segments before it learn nothing. Return the gradient of x, and of context.",
        ),
    ),
    target=LessMemory(recompute_with_large, 100 << 20, KEEPS_THE_GRAPH),
)


# ---- diagnose: an update whose state is dealt out ----


def sharded_update_cases(rng: random.Random) -> Iterator[Case]:
    sizes = [(world, world * rng.randrange(2, 5) + rng.randrange(1, world)) for world in (3, 2, 4)]
    for world, n in (*sizes, (3, 3 * rng.randrange(2, 5)), (1, rng.randrange(2, 6))):
        samples = [rng.randrange(1, 9) for _ in range(world)]
        samples[0] += 10  # never equal
        yield {
            "weights": normal(rng, n),
            "gradients": [normal(rng, n) for _ in range(world)],
            "momentum": normal(rng, n),
            "shares": [count / sum(samples) for count in samples],
            "rate": rng.choice((0.1, 0.2, 0.5)),
        }


def sharded_update_deal(case: Case) -> list[Case]:
    world = len(case["shares"])
    momenta = case["momentum"].tensor_split(world)
    return [
        {
            "weights": case["weights"].clone(),
            "gradient": case["gradients"][rank],
            "share": case["shares"][rank],
            "momentum": momenta[rank].clone(),
            "rate": case["rate"],
            "rank": rank,
            "world": world,
        }
        for rank in range(world)
    ]


def sharded_update_drive(answer, part, links):
    rank, world = part["rank"], part["world"]
    left, right = (rank - 1) % world, (rank + 1) % world
    weights, momentum = answer(
        part["weights"],
        part["gradient"],
        part["share"],
        part["momentum"],
        part["rate"],
        rank,
        world,
        lambda tensor: links.send(right, tensor),
        lambda: links.receive(left),
    )
    return {"weights": weights, "momentum": momentum}


def sharded_update_assess(returned, case: Case):
    n, world, size = len(case["weights"]), len(case["shares"]), case["weights"].itemsize
    # a shape carries numbers, too, and so does the dtype of nothing
    sent = [
        sum(max(1, -(-tensor.nbytes // size)) + 4 * max(0, tensor.dim() - 1) for tensor in tensors)
        for tensors in returned["messages"]
    ]
    found = {
        f"{name} on rank {rank}": one[name] if isinstance(one, dict) else one
        for rank, one in enumerate(returned["ranks"])
        for name in ("weights", "momentum")
    }
    beyond = max(0, max(sent) - 2 * (world - 1) * -(-n // world))
    return {**found, "numbers sent beyond the budget": beyond}


def sharded_update(weights, gradient, share, momentum, rate, rank, world, send, receive):
    pieces = (gradient * share).tensor_split(world)
    for turn in range(world - 1):
        send(pieces[(rank - turn - 1) % world])
        pieces[(rank - turn - 2) % world].add_(receive())
    momentum = 0.9 * momentum + pieces[rank]
    weights = weights.clone()
    pieces = weights.tensor_split(world)
    pieces[rank].sub_(rate * momentum)
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].copy_(receive())
    return weights, momentum


def _as_found(weights, gradient, share, momentum, rate, rank, world, send, receive):
    total = passing = gradient / world
    for _ in range(world - 1):
        send(passing)
        passing = receive()
        total = total + passing
    momentum = 0.9 * momentum + total.tensor_split(world)[rank]
    weights = weights.clone()
    weights.tensor_split(world)[rank].sub_(rate * momentum)
    return weights, momentum


def _all_reduce_first(weights, gradient, share, momentum, rate, rank, world, send, receive):
    total = gradient * share
    pieces = total.tensor_split(world)
    for turn in range(world - 1):
        send(pieces[(rank - turn - 1) % world])
        pieces[(rank - turn - 2) % world].add_(receive())
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].copy_(receive())
    momentum = 0.9 * momentum + pieces[rank]
    weights = weights.clone()
    pieces = weights.tensor_split(world)
    pieces[rank].sub_(rate * momentum)
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].copy_(receive())
    return weights, momentum


def _whole_ones_round(weights, gradient, share, momentum, rate, rank, world, send, receive):
    total = passing = gradient * share
    for _ in range(world - 1):
        send(passing)
        passing = receive()
        total = total + passing
    momentum = 0.9 * momentum + total.tensor_split(world)[rank]
    weights = weights.clone()
    pieces = weights.tensor_split(world)
    pieces[rank].sub_(rate * momentum)
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].copy_(receive())
    return weights, momentum


def _chapters_order(weights, gradient, share, momentum, rate, rank, world, send, receive):
    pieces = (gradient * share).tensor_split(world)
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].add_(receive())
    momentum = 0.9 * momentum + pieces[rank]
    weights = weights.clone()
    pieces = weights.tensor_split(world)
    pieces[rank].sub_(rate * momentum)
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].copy_(receive())
    return weights, momentum


GATHER = """\
    for turn in range(world - 1):
        send(pieces[(rank - turn) % world])
        pieces[(rank - turn - 1) % world].copy_(receive())
"""

GATHER_TOO_FAR = """\
    for turn in range(world - 1):
        send(pieces[(rank - turn - 1) % world])
        pieces[(rank - turn - 2) % world].copy_(receive())
"""
UPDATE = """\
    momentum = 0.9 * momentum + pieces[rank]
    weights = weights.clone()
    pieces = weights.tensor_split(world)
    pieces[rank].sub_(rate * momentum)
"""
MOMENTUM_LAST = """\
    total = pieces[rank]
    weights = weights.clone()
    pieces = weights.tensor_split(world)
    pieces[rank].sub_(rate * momentum)
    momentum = 0.9 * momentum + total
"""

SHARDED_UPDATE = Exercise(
    name="sharded_update",
    points=3,
    task="""Each rank keeps the momentum of its piece of the weights alone. The function below makes
the update of momentum SGD, `momentum = 0.9 · momentum + gradient`, `weights − rate · momentum`. It
has three faults. Repair it, without changing what it takes and returns.

- All ranks have the same `weights` [*n*], and each has a `gradient` [*n*] of its own. The gradient
  to use is the sum over the ranks of share × gradient. Shares are not equal.
- Rank *r* owns piece *r* of `tensor_split(world)`, and `momentum` is that of its piece.
- Return, on every rank, all new weights and the new momentum of its piece.
- On this ring `send(tensor)` goes to rank + 1, and `receive()` waits for what rank − 1 has sent. No
  rank may send more than 2 · (world − 1) · ⌈n / world⌉ numbers. *n* need not divide by `world`, and
  `world` may be 1.""",
    cases=sharded_update_cases,
    deal=sharded_update_deal,
    drive=sharded_update_drive,
    assess=sharded_update_assess,
    reference=sharded_update,
    reasoning="""The update stands between the two halves of an all-reduce. Reduce-scatter: in
world − 1 turns the pieces of share × gradient go round and are added up. Rank r is to own piece r
at the end, so it receives that one in the last turn, and begins by sending piece r − 1. Then it
updates its piece of the weights. All-gather: the new *weights* go round, where an all-reduce would
send the gradient. Each half sends world − 1 pieces.""",
    wrong=(
        Wrong(
            _as_found,
            "This is the function as found. What does each rank know of the other pieces' new "
            "weights at the end? How many numbers does it send? What is the gradient divided by?",
            given=True,
        ),
        Wrong.changed(
            sharded_update,
            "(gradient * share)",
            "(gradient / world)",
            "You take the plain mean over the ranks. Their parts of the batch differ: weigh each "
            "gradient by its share.",
        ),
        Wrong.changed(
            sharded_update,
            "(gradient * share)",
            "(gradient * 1.0)",
            "You add up what the ranks have, without their shares: the step grows with the number "
            "of ranks.",
        ),
        Wrong.changed(
            sharded_update,
            GATHER,
            "",
            "Each rank has new weights in its own piece, and old ones in all others: the models "
            "drift apart. Send the new weights round.",
        ),
        Wrong.changed(
            sharded_update,
            "    weights = weights.clone()\n    pieces = weights.tensor_split(world)\n",
            "    pieces = weights.clone().tensor_split(world)\n",
            "The weights that you return are the old ones. Return those that were updated and "
            "sent round; each rank sends its own piece, the updated one, first.",
            also=(changed(sharded_update, GATHER, GATHER_TOO_FAR),),
        ),
        Wrong.changed(
            sharded_update,
            UPDATE,
            MOMENTUM_LAST,
            "The weights take a step along the momentum of the update before. First the momentum "
            "gets the new gradient, then the weights the new momentum.",
        ),
        Wrong.changed(
            sharded_update,
            ".copy_(receive())",
            ".add_(receive())",
            "The pieces that arrive in the second half are new weights: they replace what is "
            "there. Yours adds them to it.",
        ),
        Wrong.changed(
            sharded_update,
            "0.9 * momentum + pieces[rank]",
            "0.9 * momentum + pieces[rank] / world",
            "You divide by the number of ranks as well. The shares add up to 1, so the sum of "
            "share × gradient is the average already.",
        ),
        Wrong(
            _all_reduce_first,
            "The weights are right, but you send 3 · (world − 1) pieces: an all-reduce, whose "
            "second half hands out sums that nobody needs, and a gather. Update after the first "
            "half.",
        ),
        Wrong(
            _whole_ones_round,
            "The weights are right, but whole gradients go round. A rank needs the sum of its own "
            "piece alone: send one piece in each turn.",
        ),
        Wrong(
            _chapters_order,
            "With these turns rank r ends with the complete piece r + 1, and you use piece r, "
            "which is a partial sum. Begin one piece earlier.",
        ),
        Wrong.changed(
            sharded_update,
            "    return weights, momentum",
            "    return weights, pieces[rank] * 0 + momentum * 0.9",
            "The weights are right. The momentum that you return is not the one that the weights "
            "were updated with: the next update will begin from it.",
        ),
    ),
)


# ---- target: as few segments as fit ----


def segments_for_cases(rng: random.Random) -> Iterator[Case]:
    def case(blocks, kept, boundary, budget):
        return {"blocks": blocks, "kept": kept, "boundary": boundary, "budget": budget}

    yield case(10, 2, 1, 9)  # k = 3: segments of 4, 3, 3, so 8, 7, 8
    yield case(10, 10, 1, 35)  # k = 3: a segment of 4 in front does not fit, one of 3 behind does
    yield case(36, 2, 1, 15)  # only k = 8 fits
    yield case(rng.randrange(9, 40), 1000, 1000, 1999)  # nothing fits: two blocks need 2,000
    yield case(7, 3, 1, 21)  # all of it fits
    yield case(7, 8, 4, 24)  # k = 3, and 4 with segments of ⌈7 / k⌉
    yield case(10, 10, 5, 57)  # k = 2: a peak of 55, not of 60
    blocks = rng.randrange(4, 8)
    yield case(blocks, 10, 1, 10 + blocks)  # only a segment for each block does
    for _ in range(10):
        blocks, boundary = rng.randrange(8, 60), rng.randrange(10, 50)
        kept = boundary * rng.randrange(1, 6) + rng.randrange(10)
        root = (kept * boundary * blocks) ** 0.5
        yield case(blocks, kept, boundary, round(rng.uniform(1.9, 4) * root) + kept)


def segments_for_drive(answer, case):
    return {"segments": answer(case["blocks"], case["kept"], case["boundary"], case["budget"])}


def segments_for(blocks, kept, boundary, budget):
    for k in range(1, blocks + 1):
        size, longer = divmod(blocks, k)
        sizes = [size + (place < longer) for place in range(k)]
        if max(kept * s + boundary * before for before, s in enumerate(sizes)) <= budget:
            return k
    return None


def _lowest(blocks, kept, boundary, budget):
    def peak(k):
        size, longer = divmod(blocks, k)
        return max(kept * (size + (j < longer)) + boundary * j for j in range(k))

    best = min(range(1, blocks + 1), key=peak)
    return best if peak(best) <= budget else None


def _root(blocks, kept, boundary, budget):
    k = min(blocks, max(1, round((blocks * kept / boundary) ** 0.5)))
    return k if kept * -(-blocks // k) + boundary * (k - 1) <= budget else None


def _as_chunk_cuts(blocks, kept, boundary, budget):
    for k in range(1, blocks + 1):
        size = -(-blocks // k)
        sizes = [min(size, blocks - start) for start in range(0, blocks, size)]
        if max(kept * s + boundary * before for before, s in enumerate(sizes)) <= budget:
            return k
    return None


def _every_block(blocks, kept, boundary, budget):
    return blocks if kept + boundary * (blocks - 1) <= budget else None


FITS = "max(kept * s + boundary * before for before, s in enumerate(sizes)) <= budget"

SEGMENTS_FOR = Exercise(
    name="segments_for",
    points=2,
    task="""**Target:** the chain trains within `budget` bytes of activations, and as little as
possible is computed twice.

Write `segments_for(blocks, kept, boundary, budget)`: the smallest number of segments, 1 to
`blocks`, whose peak fits the budget; `None` when no number does. Segments are as equal as can be,
the longer ones first, as `cut` makes them. While a segment is computed again, each of its blocks
keeps `kept` bytes, and each segment before it keeps its input, `boundary` bytes. All four are whole
numbers above zero.""",
    cases=segments_for_cases,
    drive=segments_for_drive,
    reference=segments_for,
    reasoning="""More segments are shorter, and leave more inputs behind: so the peak falls and
then rises, and the formula's best number is only near its lowest point. With whole blocks there is
no shortcut: try the numbers from 1 on and take the first that fits. The peak is the largest of all
segments': a long one in front has few inputs before it, a short one at the end has many.""",
    wrong=(
        Wrong(
            _lowest,
            "This is the number with the lowest peak. A smaller one may fit as well, and it "
            "computes less twice: take the smallest that fits.",
        ),
        Wrong(
            _root,
            "The square root is near the lowest peak. The budget may allow fewer segments, or "
            "only a number beside the root: try all of them.",
        ),
        Wrong(
            _every_block,
            "One segment for each block keeps the input of every block, and computes nearly all "
            "of it twice. Try smaller numbers first.",
        ),
        Wrong.changed(
            segments_for,
            FITS,
            "kept * sizes[0] <= budget",
            "You count the segment that is computed again, and not the inputs of the segments "
            "before it.",
        ),
        Wrong.changed(
            segments_for,
            FITS,
            "kept * sizes[-1] + boundary * (k - 1) <= budget",
            "You count the last segment alone. Where the blocks do not divide, the first segments "
            "are one block longer, and can be the largest.",
        ),
        Wrong.changed(
            segments_for,
            FITS,
            "kept * blocks / k + boundary * (k - 1) <= budget",
            "That is the formula for equal segments. Where the blocks do not divide, some segments "
            "are one block longer: take the largest of the sums of all segments.",
        ),
        Wrong.changed(
            segments_for,
            FITS,
            "kept * sizes[0] + boundary * (k - 1) <= budget",
            "You add the longest segment and all inputs. They do not exist at once: when the "
            "longest segment, the first one, is computed again, no input is before it.",
        ),
        Wrong.changed(
            segments_for,
            "<= budget",
            "< budget",
            "A peak of exactly `budget` bytes fits: only more than that is too much.",
        ),
        Wrong.changed(
            segments_for,
            "enumerate(sizes)",
            "enumerate(sizes, 1)",
            "You count the input of the segment that is computed again. Only the segments before "
            "it keep theirs: the first one has none before it.",
        ),
        Wrong.changed(
            segments_for,
            "range(1, blocks + 1)",
            "range(1, blocks)",
            "range(1, blocks) leaves out `blocks` itself, a segment for each block, and that may "
            "be the only number that fits.",
        ),
        Wrong.changed(
            segments_for,
            "range(1, blocks + 1)",
            "range(blocks, 0, -1)",
            "You return the largest number that fits. The more segments, the more is computed "
            "twice: begin with one.",
        ),
        Wrong(
            _as_chunk_cuts,
            "You cut segments of ⌈blocks / k⌉, and a short one is left for the end. As equal as "
            "can be means that they differ by one at most: 10 blocks in 4 are 3, 3, 2, 2.",
        ),
        Wrong.changed(
            segments_for,
            "    return None",
            "    return blocks",
            "Where no number of segments fits the budget, return None.",
        ),
    ),
)
