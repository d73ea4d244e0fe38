# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 17 · Parameter servers
#
# ## 1. The question
#
# Several workers train one model, each on its own part of the data. With an all-reduce all of them
# have to arrive before anybody goes on. A **parameter server** is another way: one process keeps
# the weights. A worker *pulls* them, computes a gradient, and *pushes* it. You can read about it:
#
# > *The parts train independently, so a parameter server speeds training up.*
# >
# > *Nobody waits for the slowest worker any more.*
# >
# > *All gradients are used, so the result is the same.*
#
# A worker that is much slower than the others is called a **straggler**. This chapter has one. You
# will see what not waiting for it gains, and what it costs.

# %% jupyter={"source_hidden": true}
import math
from functools import partial
from statistics import fmean, median

import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

from accel_lab import parameter_server as ps
from accel_lab.experiments import parameter_server as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # as each rank has

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"slow": 50}`, and
# run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs)
mnist = lab.datasets.mnist5k()
seeds = [base.seed + place for place in lab.some_seeds(5)]
sizes = [p.numel() for p in lab.models.mlp(784, base.width, base.width, 10).parameters()]
print(f"a network of {sum(sizes):,} weights; a gradient of it has {4 * sum(sizes) / 2**20:.2f} MiB")
print(f"workers: {base.workers}, each takes {base.batch_size} samples for a gradient")
print(f"the last one sleeps {base.slow:g} ms before each of its gradients")

# %% [markdown]
# ## 2. Predict
#
# Two guesses. In `sync` mode the server waits until all workers have pushed. In `async` mode it
# takes each gradient as it comes, and answers at once.

# %%
guess_pace = lab.Prediction(
    f"One worker sleeps {base.slow:g} ms per gradient. The gradients per second of all workers: "
    "how many times as many in async mode as in sync mode?",
    low=0.5,
    high=50,
    default=2.0,
    unit="×",
)
guess_pace

# %% [markdown]
# Now each worker gets digits that only it has: the first one 0 to 4, the sleepy one 5 to 9. Both
# modes make the same small number of gradients.

# %%
number = 200
guess_digits = lab.Prediction(
    f"After {number} gradients in async mode: how many of the digits 5 to 9 are right?",
    low=1,
    high=100,
    default=80,
    unit="%",
)
guess_digits

# %% [markdown]
# ## 3. See
#
# First, how long does a worker that never sleeps take for one gradient, with its push and pull? The
# formulas in the panel need this one number.

# %%
alone = 1 / median(one.pace for one in experiment.outcomes([experiment.lone(base)] * 3, 60))
print(f"a gradient of one worker alone: {1e3 * alone:.2f} ms")

# %% [markdown]
# Here each worker has digits of its kind (**shards** by digit). Press **Start**: a server (rank 0)
# and its workers begin. After some seconds change the **mode** to `async`, and the run begins
# anew. Then try `mixed` shards.
#
# - **sync**: the server waits for all. **async**: it waits for nobody.
# - **bounded**: nobody gets more than a few pushes ahead of the slowest.
# - **all-reduce** and **local**: no server. Rank 0 is the first worker then.
# - **lag**: the server hands out weights that are older than they have to be.

# %% jupyter={"source_hidden": true}
predicted = partial(experiment.predicted_pace, alone=alone)
formula = "W / max t, async Σ 1/t"
learnt = {"scale": 100, "over": "gradients", "ends": (0, 100), "noisy": False}
charts = [
    lab.Sweep("slow", "pace", "gradients/s", predicted=predicted, formula=formula, log=(10, 3e3)),
    lab.Curve("accuracy_5_9", "right of the digits 5 to 9, %", **learnt),
    lab.Curve("accuracy_0_4", "right of the digits 0 to 4, %", **learnt),
    lab.Curve("staleness", "mean staleness", limit=(base.workers - 1, "W − 1"), noisy=False),
    lab.Timeline(),
]
panel_base = base.turned(shards="by digit", mistake="none", twin=False, mode="sync")

# %%
panel = lab.Panel(
    experiment.run,
    panel_base,
    charts,
    controls=["mode", "slow", "shards", "lag"],
    baselines={"all-reduce": {"mode": "all-reduce", "lag": 0}},
    headline=None,
    tour=[panel_base, panel_base.turned(mode="async")],
    seconds=2.0,
)
panel

# %% [markdown]
# What to look for:
#
# - **Gradients per second.** One rule waits and one does not. Which formula do the dots follow when
#   you move **slow**?
# - **Timeline.** Grey is *waiting*. Who waits for whom? In the gaps of rank 0, the server hands its
#   numbers to this notebook.
# - **Right of the digits.** After the same number of gradients, which digits does the network know?
# - **Staleness.** It is how many updates the server made between a worker's pull and its push.

# %% [markdown]
# ## 4. Build
#
# ### One vector
#
# Weights travel as one flat tensor, and so does the gradient. `flatten` moves the parameters of a
# model into one, and leaves views of it in their places.

# %% tags=["nbval-check-output"]
model = lab.models.mlp(784, 16, 10)
weights, gradients = ps.flatten(model)
print("tensors:", [list(p.shape) for p in model.parameters()])
print("flat:", list(weights.shape))
weights.zero_()
print("and the model sees it:", bool((model[1].weight == 0).all()))

# %% [markdown]
# ### A worker
#
# A worker computes, pushes, and pulls. That is all it does, in every mode:

# %%
lab.show_source(ps.work, docstring=False)

# %% [markdown]
# A push is two messages. The first is a note: the number of the batch, the worker's **share** of
# all samples, as in the chapter before, and further numbers such as the loss. The second is the
# gradient. An answer says whether to go on, and brings the weights.
#
# ### The server
#
# The modes differ in two questions. First: when does a push change the weights? In `sync`, a whole
# round is added up when its last push is there. Otherwise each push is applied at once:

# %%
lab.show_source(ps.Server.apply, first="self.staleness =", last="return len")

# %% [markdown]
# $$\text{sync:}\quad w \leftarrow w - \eta \sum_{r} s_r\, g_r \qquad\qquad
# \text{async:}\quad w \leftarrow w - \eta\, s_r\, g_r$$
#
# In both cases a gradient is weighted by its share $s_r$, so equally many gradients move the
# weights equally far. A gradient that is not finite is left out, and its worker is named.
#
# Second: who may go on? In `sync`, a worker that has no push in the round that is being collected.
# In `bounded`, a worker that is at most `bound` pushes ahead of the slowest.
#
# One line is left out. Your rule is tried, with a bound of 1, on seven turns of three workers.
# Worker 1 has to wait while it is two pushes ahead of worker 3, and nobody else waits:


# %%
def the_right_ones_wait(may_reply):
    mine = type("Mine", (ps.Server,), {"may_reply": may_reply})
    server = mine(torch.zeros(4), [1, 2, 3], rate=0.1, rule="bounded", bound=1)
    waiting = []
    for worker in (1, 2, 1, 1, 3, 2, 1):
        if worker not in server.waiting:
            server.apply(torch.ones(4), worker, 1 / 3)
            server.ready()
        waiting.append(list(server.waiting))  # who waits after this turn
    return waiting, [[], [], [1], [1], [], [], [1]]


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    ps.Server.may_reply,
    {
        "ahead = self.clock[worker] - min(self.clock.values())": (
            "How many pushes it is ahead of the slowest worker."
        ),
        "ahead = self.clock[worker] - max(self.clock.values())": (
            "Never above 0, so nobody ever waits, as in async."
        ),
        "ahead = max(self.clock.values()) - self.clock[worker]": (
            "How far it is behind the fastest: the slow ones wait, and the fastest never does."
        ),
        "ahead = self.version - self._pulled[worker]": (
            "All updates since its pull, its own included. A slow worker has many of them, so it "
            "waits although it is ahead of nobody."
        ),
    },
    the_right_ones_wait,
)

# %% [markdown]
# Here is a server without any process: three workers push, one after the other. Who is answered
# after each push?

# %% tags=["nbval-check-output"]
order = [1, 2, 1, 1, 3, 2, 1]
for rule in ("sync", "bounded", "async"):
    server = ps.Server(torch.zeros(4), [1, 2, 3], rate=0.1, rule=rule, bound=1)
    answered = []
    for worker in order:
        if worker not in server.waiting:  # who waits cannot push
            server.apply(torch.ones(4), worker, 1 / 3)
            answered.append(f"{worker} pushes → {server.ready()}")
    print(f"{rule:<8}", ", ".join(answered))

# %% [markdown]
# In `sync` nobody is answered until all three have pushed. In `bounded`, with 1 push allowed ahead,
# worker 1 has to wait once it is two ahead of the slowest. In `async` everybody is answered at
# once.
#
# ### The loop
#
# Around it is a loop that receives from the worker that comes first:

# %%
lab.show_source(ps.serve, docstring=False, first="note, gradient", last="yield")

# %% [markdown]
# The plain way would be to receive in the order of the workers. Then every worker waits for the one
# before it, in every mode, and the server is in step with the slowest:

# %%
lab.show_source(ps.in_turn)

# %% [markdown]
# ### Watch a race
#
# Some pushes of an async run, recorded here. A bar begins with the version of the weights that the
# worker pulled, and ends with the version that its push made. Its number is the staleness: the
# updates that others made meanwhile. Press **Play** (▶).

# %%
raced = base.turned(mode="async", shards="mixed", slow=2.0, lag=0, mistake="none", ranks=3)
race = experiment.outcomes([raced], 120)[0]
pushes = race.pushes[20:50]
oldest = min(place - one.staleness for place, one in enumerate(pushes, 20))
print("the order of arrival:", *(push.worker for push in pushes))


# %% jupyter={"source_hidden": true}
def draw_race(push=30):
    picture, (axes,) = lab.figure.axes(8.5, 2.4)
    for place, one in enumerate(pushes[:push], 20):
        age, color = one.staleness, (lab.figure.BLUE, lab.figure.ORANGE)[one.worker - 1]
        fill = {"color": color, "alpha": 0.6 + 0.4 * (place == push + 19)}
        axes.barh(one.worker, age + 1, left=place - age, height=0.5, edgecolor="white", **fill)
        axes.text(place + 0.9, one.worker, age, ha="right", va="center", color="white")
    axes.set(xlim=(oldest, 50), ylim=(2.6, 0.4), xlabel="version of the weights")
    axes.set_yticks([1, 2], ["worker 1", "worker 2, sleepy"])
    said = f"worker {one.worker} pushes, staleness {one.staleness}: version {place + 1}"
    axes.set_title(said, loc="left", fontsize=10)
    return picture


lab.Sliders(draw_race, push=range(1, len(pushes) + 1))

# %% [markdown]
# ### No server: local SGD
#
# There is a third way to wait less. **Local SGD** makes *K* updates at each worker by itself, and
# then one average of the weights. It sends a *K*-th of the bytes. For each average the
# workers still wait for each other.

# %%
lab.show_source(ps.local_update, docstring=False)

# %% [markdown]
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*
#
# ## 5. Prove
#
# ### A sync server is one process
#
# Ten updates in float64, with batches of 61 samples: worker 1 has 31 of them, and worker 2 has 30.
# A network and its gradient, for all three ways:


# %%
def network(seed=0):
    torch.manual_seed(seed)
    return lab.models.mlp(784, 16, 10).double()


def gradient_at(model, gradients, x, y):
    gradients.zero_()
    cross_entropy(model(x), y).backward()
    return gradients


# %% [markdown]
# The one process:


# %%
def one_process(batches):
    model = network()
    weights, gradients = ps.flatten(model)
    for x, y in batches:
        weights.add_(gradient_at(model, gradients, x, y), alpha=-0.1)
        yield {"weights": weights.clone()}


# %% [markdown]
# The same as an all-reduce of two ranks. What is new is the share, and the sum over ranks:


# %%
def all_reduced(batches):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = network()
    weights, gradients = ps.flatten(model)
    for x, y in batches:
        x_mine, y_mine = x[rank::world], y[rank::world]
        gradient = gradient_at(model, gradients, x_mine, y_mine) * len(y_mine) / len(y)
        dist.all_reduce(gradient)
        weights.add_(gradient, alpha=-0.1)
        yield {"weights": weights.clone()}


# %% [markdown]
# And with a server and two workers. Every rank starts with other weights; `meet` gives all of them
# the server's:


# %%
def served(batches):
    rank, workers = dist.get_rank(), dist.get_world_size() - 1
    model = network(seed=rank)
    weights, gradients = ps.flatten(model)
    ps.meet(weights)
    if rank:
        ps.work(partial(part_of, batches, rank, workers, model, gradients), weights)
        return
    server = ps.Server(weights, range(1, workers + 1), rate=0.1)
    for push in ps.serve(server, workers * len(batches)):
        if push.updated:
            yield {"weights": weights.clone()}


# %% [markdown]
# What a worker computes: the gradient of its samples, and its share.


# %%
def part_of(batches, worker, workers, model, gradients, number):
    x, y = (one[worker - 1 :: workers] for one in batches[number])
    return gradient_at(model, gradients, x, y), len(y) / len(batches[number][1]), ()


# %% tags=["nbval-check-output"]
feed = mnist.batches(61)
batches = [(x.double(), y) for x, y in (next(feed) for _ in range(10))]
ways = {"one process": one_process(batches)}
ways["all-reduce"] = lab.collect(all_reduced, 2, batches)[0]
ways["sync server"] = lab.collect(served, 3, batches)[0]
proof = lab.prove(ways)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# So a sync server does the arithmetic of an all-reduce, over other wires.
#
# ### An async run can be repeated
#
# An async run is a race: no two are alike. But only one thing in it is left to chance, the *order
# of arrival*. With a log of it, one process can compute everything else again. That is a
# **replay**:

# %%
lab.show_source(ps.replay, docstring=False)

# %% [markdown]
# The recorded race from above, 120 gradients of two workers, once more:


# %% tags=["nbval-check-output"]
trainer = experiment.Trainer(raced, mnist, workers=2)


def gradient_of_push(weights, worker, number):
    trainer.weights.copy_(weights)
    trainer.gradient(worker, number)
    return trainer.gradients, 1 / 2


same_start = experiment.server_of(raced, trainer.weights.clone())
arrivals = [push.worker for push in race.pushes]
again = ps.replay(arrivals, same_start, gradient_of_push)
print("pushes:", len(arrivals), " the same weights, bit for bit:", torch.equal(again, race.weights))

# %% [markdown]
# That is an exact test of a program that never does the same thing twice. The panel of part 7 uses
# it: it repeats every update as it should have been.
#
# ### Local SGD is PyTorch's
#
# PyTorch's `PeriodicModelAverager` averages the parameters of a model now and then. The same
# batches, with its optimizer and ours:


# %%
def both_local(batches, every):
    rank, world = dist.get_rank(), dist.get_world_size()
    ours, theirs = network(), network()
    weights, gradients = ps.flatten(ours)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    averager = PeriodicModelAverager(period=every, warmup_steps=every - 1)
    for number, (x, y) in enumerate(batches):
        x, y = x[rank:60:world], y[rank:60:world]  # 30 samples each
        gradient = gradient_at(ours, gradients, x, y)
        ps.local_update(weights, gradient, 0.1, number, every, 1 / world)
        optimizer.zero_grad()
        cross_entropy(theirs(x), y).backward()
        optimizer.step()
        averager.average_parameters(theirs.parameters())
        yield float((weights - parameters_to_vector(theirs.parameters()).detach()).abs().max())


# %% tags=["nbval-check-output"]
for every in (2, 4):
    apart = lab.collect(both_local, 2, batches, every)[0]
    print(f"K = {every}: ours = torch's over {len(apart)} updates: {max(apart) < 1e-12}")

# %% [markdown]
# ## 6. Measure
#
# ### How many gradients a second?
#
# Let worker *r* take $t_r$ seconds for a gradient. Where all wait for each other, a round lasts as
# long as its slowest. Where nobody waits, everybody has a pace:
#
# $$\text{sync, all-reduce:}\quad \frac{W}{\max_r t_r} \qquad\qquad
# \text{async:}\quad \sum_r \frac{1}{t_r}$$
#
# In a timeline one can see it. Recorded on a server (rank 0) and its workers:

# %%
plain = base.turned(shards="mixed", lag=0, mistake="none", twin=False)
lanes = {mode: experiment.a_timeline(plain.turned(mode=mode)) for mode in ("sync", "async")}
lab.figure.draw_timelines(lanes, label="milliseconds")

# %% [markdown]
# Now for several sleeps. Before each of them one worker that never sleeps has the server for
# itself: that is $t_r$, and the straggler's is longer by its sleep.

# %%
slows, modes = lab.along((5.0, 20.0, 50.0)), ("all-reduce", "sync", "async")
settings = [plain.turned(mode=mode, slow=slow) for slow in slows for mode in modes]
often = [one for one in settings for _ in range(3 if one.mode == "async" else 1)]
pairs = [each for one in often for each in (experiment.lone(one), one)]
paces = [one.pace for one in experiment.outcomes(pairs, 30)]
for setting in settings:
    mine = [place for place, one in enumerate(pairs) if one is setting]
    found = median(paces[place] for place in mine)
    wanted = experiment.predicted_pace(setting, 1 / median(paces[place - 1] for place in mine))
    print(f"{setting.slow:>3.0f} ms asleep, {setting.mode:<10}: {found:6.1f} gradients/s,", end=" ")
    print(f"{found / wanted:.2f} × the formula")

# %% [markdown]
# The formula assumes a core for each worker, and one for the server. Shared cores mostly push the
# factor below 1, and whatever else runs on this machine moves it.
#
# ### What does the straggler teach?
#
# Now the second guess. Each run makes equally many gradients. *By digit* gives the straggler the
# digits 5 to 9, and nobody else has them. *Mixed* gives everybody everything.

# %%
cases = {
    "sync": {"mode": "sync", "shards": "by digit"},
    "async": {"mode": "async", "shards": "by digit"},
    "async, mixed": {"mode": "async", "shards": "mixed"},
}
turned = [plain.turned(**changes, seed=seed) for changes in cases.values() for seed in seeds]
bounded = [plain.turned(mode="bounded", shards="by digit", seed=seed) for seed in seeds[:1]]
ended = experiment.outcomes(turned + bounded, number)
results = {
    name: ended[place * len(seeds) : (place + 1) * len(seeds)] for place, name in enumerate(cases)
}
results["bounded"] = ended[len(turned) :]

# %%
for name, found in results.items():
    took, heard = zip(*((one.seconds, one.clock[base.workers]) for one in found))
    print(f"{name:<12} {fmean(took):5.2f} s, straggler {fmean(heard):5.1f} of {number};", end=" ")
    low, high = ([100 * value for value in part] for part in zip(*(one[2:4] for one in found)))
    print(f"0 to 4: {fmean(low):.0f} %, 5 to 9: {lab.figure.tell_over_seeds(high, '%')}")


# %% jupyter={"source_hidden": true}
def draw_known(axes, found_by_case):
    """A dot for each seed: what is known of the digits that all hear, and of the straggler's."""
    looks = {"0 to 4": (lab.figure.GREY, "s"), "5 to 9, the straggler's": (lab.figure.ORANGE, "o")}
    for part, (label, (color, marker)) in enumerate(looks.items()):
        for place, found in enumerate(found_by_case.values()):
            values = [100 * one[2 + part] for one in found]
            height = [place + 0.18 * part - 0.09] * len(values)
            axes.plot(values, height, marker, color=color, label="" if place else label)
    axes.set(xlim=(-2, 100), ylim=(len(found_by_case) - 0.5, -0.5))
    axes.set_yticks(range(len(found_by_case)), list(found_by_case))
    axes.set_xlabel("right of the test digits, %")
    axes.legend(frameon=False, fontsize=8, loc="upper left")


# %% tags=["hero"] jupyter={"source_hidden": true}
shown = ["sync", "bounded", "async", "async, mixed"]
lasted = {name: fmean(one.seconds for one in results[name]) for name in shown}
picture, (left, right) = lab.figure.axes(9.6, 3.4, columns=2)
lab.figure.draw_bars(left, lasted, unit="s")
left.set_xlabel("seconds")
left.set_title(f"How long do {number} gradients take?", loc="left")
draw_known(right, {name: results[name] for name in shown})
right.set_title("Which digits does it know?", loc="left")
picture

# %%
faster = lasted["sync"] / lasted["async"]
known = {name: [100 * one.high for one in found] for name, found in results.items()}
lost = fmean(known["sync"]) - fmean(known["async"])
worse = sum(a < b for a, b in zip(known["async"], known["sync"]))
print(f"async: {faster:.1f} × as fast as sync with as many gradients; digits 5 to 9:", end=" ")
print(f"{-lost:+.0f} points, worse in {worse} of {len(seeds)} seeds")
mixed = fmean(known["async, mixed"]) - fmean(known["sync"])
told = "it is whose data is heard" if -mixed < lost / 2 else "so old weights do harm, too"
print(f"async, and everybody has all digits: {mixed:+.0f} points: {told}")
guess_pace.against(faster)

# %%
guess_digits.against(max(1.0, fmean(known["async"])))

# %% [markdown]
# **The same number of gradients in a fraction of the time, and most of them are not the
# straggler's.** All gradients are used, but not equally many of each worker. Is it the old weights?
# Compare with *async, mixed*. There the weights are as old, and everybody has all digits.
#
# But async made its gradients in less time. What if it goes on for more of them?

# %%
late = plain.turned(mode="async", shards="by digit")
for more in (5, 10):
    one = experiment.outcomes([late], more * number)[0]
    reached = "as well as sync" if one.high >= fmean(known["sync"]) / 100 else "less than sync"
    print(f"{more:>2} × the gradients, {one.seconds:.1f} s:", end=" ")
    print(f"{100 * one.high:.0f} % of the digits 5 to 9, {reached} after {number} gradients")

# %% [markdown]
# An async server does not forget the straggler, it hears it less often. What counts for those
# digits is how many of their gradients came in, and the straggler makes no more of them in a second
# than before.
#
# ### How stale is a push?
#
# Each update ages the gradients of all other workers that are under way: *W* − 1 of them. So the
# mean staleness of an async run is close to *W* − 1, however fast or slow the workers are. What the
# speeds change is who bears it.

# %%
for one in results["async"][:3]:
    mean = {
        worker: fmean([push.staleness for push in one.pushes if push.worker == worker] or [0])
        for worker in one.clock
    }
    everyone = fmean(push.staleness for push in one.pushes)
    most = max(push.staleness for push in one.pushes)
    print(f"mean {everyone:.2f} (W − 1 = {base.workers - 1}), at most {most};", end=" ")
    print(", ".join(f"worker {worker}: {age:.2f}" for worker, age in mean.items()))

# %% [markdown]
# ### How much staleness can training bear?
#
# One process can study that without a race. `delayed` takes each gradient at the weights of $\tau$
# updates ago:

# %%
lab.show_source(ps.delayed, docstring=False)

# %% [markdown]
# On a quadratic loss of curvature $\lambda$, an error *e* follows $e_{k+1} = e_k - \eta\lambda\,
# e_{k-\tau}$. It dies out as long as
#
# $$\eta < \frac{2}{\lambda}\,\sin\frac{\pi}{2(2\tau + 1)} .$$
#
# Without a lag that is the well-known $2/\lambda$. Least squares on digits is such a loss. Each of
# its directions has a curvature, and the largest one sets the limit.


# %%
def stays(curvature, rate, lag):
    start, updates = torch.ones_like(curvature), 300 * (1 + lag)
    *_, end = ps.delayed(lambda w, _: curvature * w, start, rate, lag, updates)
    return bool(end.abs().max() < 2)


def largest_that_stays(curvature, lag):
    low, high = (factor * ps.largest_rate(float(curvature.max()), lag) for factor in (0.5, 2))
    for _ in range(8):
        rate = (low * high) ** 0.5
        low, high = (rate, high) if stays(curvature, rate, lag) else (low, rate)
    return low


# %%
pixels = mnist.train_x[:500].flatten(1).double()
curvature = torch.linalg.eigvalsh(pixels.T @ pixels / 500)
for lag in lab.along((0, 1, 2, 4, 8, 16)):
    wanted, found = ps.largest_rate(float(curvature.max()), lag), largest_that_stays(curvature, lag)
    print(f"lag {lag:>2}: predicted {wanted:.5f}, found {found:.5f}: {found / wanted:.2f} ×")

# %% [markdown]
# A lag of one costs half of the learning rate, and each further update more. Does a network feel
# it? Here is the loss of 300 delayed updates with batches of 64:


# %%
def loss_under_lag(rate, lag, updates=300):
    small = experiment.Trainer(plain.turned(batch_size=64), mnist, workers=1)
    losses = []

    def gradient(weights, number):
        small.weights.copy_(weights)
        losses.append(small.gradient(1, number))
        return small.gradients.clone()

    list(ps.delayed(gradient, small.weights.clone(), rate, lag, updates))
    return fmean(losses[-20:])


# %%
lags, rates = lab.along((0, 1, 2, 4, 8, 16)), (0.1, 0.02)
after = {f"η = {rate:g}": {lag: loss_under_lag(rate, lag) for lag in lags} for rate in rates}
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(xlabel="lag τ, updates", ylabel="loss after 300 updates")
lab.figure.draw_lines(axes, after)
axes.set_title("What does a lag do?", loc="left")
picture

# %%
for name, line in after.items():
    fresh, stale = line[lags[0]], line[lags[-1]]
    told = "little worse" if stale < 1.2 * fresh else f"{stale / fresh:.1f} × as high"
    print(f"{name}: loss {fresh:.2f} without a lag; with a lag of {lags[-1]}: {stale:.2f}, {told}")

# %% [markdown]
# More async workers mean more staleness: *W* of them work like a lag of about *W* − 1. But each
# push counts by its share, 1/*W*, so its step is shorter as well. On a quadratic, with equally fast
# workers, the two nearly balance: async bears the full learning rate of sync at *W* = 2, and
# π/4 of it, about four fifths, at many. A lag *without* shorter steps is what costs. The knob
# **lag** adds one: the server hands out old weights.
#
# ### Where do the bytes go?
#
# With a gradient of *b* bytes, a server receives *W* gradients in a round, and sends *W* times the
# weights: 2·*W*·*b* in and out of one process. Each rank of a ring all-reduce sends
# 2(*W* − 1)/*W*·*b*, and receives as much. We count what arrives at the server, and leaves it.

# %%
gradient_bytes = 4 * sum(sizes)
counted = {}
for name in ("sync", "async"):
    one = results[name][0]
    rounds = sum(one.clock.values()) / base.workers
    counted[name] = sum(push.bytes for push in one.pushes) / rounds / gradient_bytes
    print(f"{name:<5}: {counted[name]:.4f} gradients for each {base.workers} pushes,", end=" ")
    print(f"2·W = {2 * base.workers}")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(7.5, 3)
counts = range(1, 17)
lines = {
    "the server: 2·W": {w: 2 * w for w in counts},
    "each rank of a ring: 4(W − 1)/W": {w: 4 * (w - 1) / w for w in counts},
}
lab.figure.draw_lines(axes, lines, points=False)
axes.plot([base.workers], [counted["sync"]], "o", color="black", zorder=4)
axes.annotate(
    "counted", (base.workers, counted["sync"]), xytext=(-8, 9), textcoords="offset points"
)
axes.set(xlabel="workers W", ylabel="in and out of a process, × b", ylim=(0, None))
axes.set_title("How much does the busiest process move in a round?", loc="left")
picture

# %% [markdown]
# A little more than 2·*W*: a few numbers go in front of each gradient, and of the weights. A rank
# of the ring stays below 4, and the traffic of one server grows with every worker. That is one
# reason why all-reduce has replaced servers for models whose gradients are *dense*: every weight
# gets one each time.

# %% [markdown]
# ## 7. Break it
#
# Rank 0 repeats every update here as it should have been: the gradient once more, at the weights
# that the worker had, and the right rule. The difference, over the length of the right update, is
# the *error of the update*. A right one has 0, which a logarithmic axis cannot show: the badge
# tells. Press **Start**, then go through the mistakes, in the three modes with a server. *stuck
# worker*, *dying worker* and *dying server* are for the cells below.

# %% jupyter={"source_hidden": true}
plainly = {"shards": "mixed", "lag": 0, "mistake": "none", "timeline": False}
broken = base.turned(mode="bounded", slow=5.0, twin=True, **plainly)
over = {"over": "updates", "noisy": False}
charts = [
    lab.Curve("update_error", "error of the update", log=(1e-4, 1e2), summary="max", **over),
    lab.Curve("loss", "loss", over="updates", limit=(math.log(10), "chance, ln 10")),
    lab.Curve("ahead", "pushes ahead of the slowest", log=(1, 1e3), **over),
    lab.Curve("refused", "pushes refused", log=(1, 1e3), **over),
]
right_or_wrong = lab.Badge("update_error", 1e-4, "every update is right", "not the right update")
shown_mistakes = ["lost update", "momentum on the server", "one worker's NaN", "forgotten bound"]

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    charts,
    controls=["mistake", "mode", "slow"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=lab.along([broken.turned(mistake=mistake) for mistake in shown_mistakes]),
    seconds=0.8,
    badge=right_or_wrong,
)
break_it

# %% [markdown]
# Write down what you think each mistake does, then look.
#
# <details><summary>What each of them does</summary>
#
# - **lost update**: the server writes the weights that the worker had, minus its gradient. All that
#   others pushed in between is erased. The straggler erases most. In `sync` nobody pushes in
#   between, so there nothing is lost.
# - **sum instead of mean**: each gradient counts in full instead of by its share. The learning rate
#   is *W* times too large.
# - **momentum on the server**: a momentum of 0.9 with the same learning rate makes steps up to ten
#   times as long.
# - **one worker's NaN**: the server refuses such a push, and everybody goes on. An all-reduce adds
#   it to everybody's sum.
# - **forgotten bound**: every update is right, so the badge says so. Look at who is ahead instead.
#
# </details>
#
# ### When a process fails
#
# A process dies. Who it was is said in one line, and no process is left behind. A sync round needs
# every worker, so the run ends. An async server waits for nobody, and goes on with the workers that
# are left. When the server dies, every run ends.

# %% tags=["nbval-check-output"]
small = plain.turned(ranks=3, width=16, batch_size=8, slow=1.0, mode="async")
dying = small.turned(mistake="dying worker")
print("sync: ", lab.failure_of(experiment.run(dying.turned(mode="sync")), most=500).headline)
steps = experiment.run(dying)
next(step for step in steps if step.metrics["lost"])
print("async:", len([next(steps) for _ in range(number)]), "updates since, and it goes on")
steps.close()
dying = small.turned(mistake="dying server")
print("async:", lab.failure_of(experiment.run(dying), most=500).headline)

# %% [markdown]
# And a worker that is stuck? A sync server waits for it, and so does everybody else. An async
# server goes on.

# %% tags=["nbval-check-output"]
stuck = small.turned(mistake="stuck worker", timeout=2.0)
print("sync: ", lab.failure_of(experiment.run(stuck.turned(mode="sync")), most=500).headline)
steps = experiment.run(stuck)
print("async:", len([next(steps) for _ in range(number)]), "updates, and it goes on")
steps.close()

# %% [markdown]
# ### Bad input
#
# What cannot be is refused in one line:

# %% tags=["nbval-check-output"]
for wrong in (
    lambda: base.turned(ranks=1),
    lambda: base.turned(bound=-1),
    lambda: base.turned(mode="local", lag=4),
    lambda: ps.Server(torch.zeros(3), [1, 2], rate=0.1).apply(torch.zeros(4), 1, 0.5),
    lambda: ps.Server(torch.zeros(3), [1, 2], rate=0.1).apply(torch.zeros(3), 7, 0.5),
    lambda: next(ps.delayed(lambda w, _: w, torch.ones(1), 0.1, lag=10, updates=10)),
):
    try:
        wrong()
    except ValueError as refusal:
        print(refusal)

# %% [markdown]
# ## 8. When it does not help
#
# ### When nobody is slow
#
# Without a straggler there is nothing to gain from not waiting. The modes take turns, several times
# each, in one launch. Local SGD averages after every few updates:

# %%
even = {
    mode: plain.turned(mode=mode, slow=0.0) for mode in ("all-reduce", "sync", "async", "local")
}
turns = experiment.outcomes([*even.values()] * 10, 40)[len(even) :]  # the first turn warms up
timed = {mode: [one.seconds for one in turns[k :: len(even)]] for k, mode in enumerate(even)}
against = {mode: lab.compared(timed, mode, "all-reduce") for mode in timed if mode != "all-reduce"}
print(*against.values(), sep="\n")

# %% [markdown]
# With a dense model, a server is a detour: every gradient goes to one process and comes back, and
# the server itself wants a core. Local SGD sends less. Here it averages after each few updates, so
# its workers train on weights that have drifted apart in between.
#
# ### When a worker is always slow
#
# A bound helps against hiccups: a worker that is late now and then is waited for less often. One
# that is *always* slow is soon as far behind as the bound allows. From then on everybody goes at
# its pace:

# %%
sync, held = (fmean(one.pace for one in results[name]) for name in ("sync", "bounded"))
told = "the bound has saved little" if held < 1.5 * sync else "the bound has saved something"
print(f"bounded by {base.bound}: {held:.0f} gradients/s, sync: {sync:.0f}: {told}")
shares = {
    name: fmean(one.clock[base.workers] for one in results[name]) / number for name in shown[:3]
}
for name, share in shares.items():
    print(f"{name:<8} {share:.0%} of the gradients are the straggler's")

# %% [markdown]
# In return the bound keeps the straggler's part of the gradients, and so its digits.
#
# ### When the data are dealt by worker
#
# That is the case of part 6. Phones, hospitals and shops have each their kind of data, and an async
# server learns mostly from the fast ones.
#
# ### When the learning rate is large
#
# See part 6: near its limit, a learning rate leaves no room for a lag.
#
# So, about the sentences from the start, the verdict for this machine:

# %%
verdict = (
    f"async {faster:.1f} × as fast as sync beside a straggler of {base.slow:g} ms, and "
    f"{-lost:+.0f} points on its digits after {number} gradients; nobody slow: "
    f"{against['async']}; {against['local']}"
)
lab.log_verdict("parameter_server", verdict)

# %% [markdown]
# - *A parameter server speeds training up:* only where somebody would be waited for.
# - *Nobody waits any more:* true for async. Then the model learns mostly from the fast workers.
# - *The result is the same:* for sync yes, to rounding. For async it depends on the order of
#   arrival, and on nothing else.
#
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. One function is written already, with faults: repair
# it.

# %%
from accel_lab.grading.practice import check, exercises

BOUNDED, SERVER, MODE = exercises("parameter_server")
BOUNDED


# %% tags=["exercise"]
def serve_bounded(seconds, gradient, weights, rate, bound, pushes):
    raise NotImplementedError


check(serve_bounded)

# %%
SERVER


# %% tags=["exercise"]
def train_with_server(weights, batches, gradient, rate, rank, world, send, receive):
    workers = range(1, world)
    for batch in batches:
        if rank == 0:
            for worker in workers:
                weights = weights - rate * receive(worker) / (world - 1)
                send(worker, weights)
        else:
            mine = batch[rank::world]
            send(0, gradient(weights, mine) / (world - 1))
            weights = receive(0)
    return weights


check(train_with_server)

# %%
MODE


# %% tags=["exercise"]
def best_mode(seconds, gradient_bytes, latency, bytes_per_second):
    raise NotImplementedError


check(best_mode)

# %% [markdown]
# ## 10. Take away
#
# - A sync server is an all-reduce by a detour: the same weights, and 2·*W* gradients through one
#   link.
# - An async server gains what the others would have waited: Σ 1/*t* gradients a second instead of
#   *W*/max *t*.
# - It pays with the straggler's data, which the model learns later, and with staleness, *W* − 1 on
#   average. A lag without shorter steps takes most of the learning rate.
# - A bound keeps everybody's part, and a steady straggler's pace.
# - A race can be tested: log the order of arrival and replay it.

# %% [markdown]
# Known from elsewhere, and not measured here: servers are still used where gradients are *sparse*,
# as of large embedding tables, since a push then carries only the rows that it changes. Large
# systems split the weights over several servers (Li et al., 2014). *Backup workers* start more
# workers than needed, and a sync server drops the last pushes of each round (Chen et al., 2016).
# Pushes can be made smaller by their staleness (Zhang et al., 2016): the knob `discount`. Local SGD
# is one way to train one model in several data centers (A. Douillard et al., *DiLoCo*, 2023,
# arXiv:2311.08105).

# %% [markdown]
# **What would prove this wrong?** An async run whose log of arrivals, replayed in one process, ends
# with other weights. Or a straggler with digits of its own kind that an async server knows as well
# as a sync one after as few gradients as in part 6, in most of ten seeds.

# %% [markdown]
# **Sources.** J. Dean et al., *Large scale distributed deep networks*, 2012 · M. Li et al.,
# *Scaling distributed machine learning with the parameter server*, 2014 · Q. Ho et al., *More
# effective distributed ML via a stale synchronous parallel parameter server*, 2013 · W. Zhang et
# al., *Staleness-aware async-SGD*, 2016, arXiv:1511.05950 · J. Chen et al., *Revisiting distributed
# synchronous SGD*, 2016, arXiv:1604.00981 · S. Stich, *Local SGD converges fast and communicates
# little*, 2019, arXiv:1805.09767 · S. Levin, R. May, *A note on difference-delay equations*, 1976,
# for the limit of a lag.
#
# **Next.** Every worker here holds the whole model. If that is too large for one of them, the
# layers can be dealt out instead. That is pipeline parallelism,
# [chapter 18](18_pipeline.ipynb). The other chapters are listed on the
# [first page](00_start_here.ipynb).
