# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # 11 · Gradient accumulation
#
# ## 1. The question
#
# Large batches give steady gradients, and they need memory: for every sample in the batch the
# network keeps its intermediate results, the *activations*, until the backward pass has used them.
# What if the batch you want does not fit?
#
# Gradient accumulation cuts the batch into **micro-batches**, sends them through the network one
# after another, and lets their gradients add up before the optimizer takes its one step.
#
# You can read two things about it, sometimes in the same article:
#
# > *It is a technique that speeds up training.*
# >
# > *It is slower than training without it.*
#
# Both cannot be right. You will find out what it does on the machine in front of you: to the
# memory, to the speed, and to the weights that come out.

# %% jupyter={"source_hidden": true}
from itertools import islice
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from accel_lab import accumulation
from accel_lab.experiments import accumulation as experiment
from accel_lab.workbench import chapter as lab

torch.set_num_threads(1)  # two that share an update wait for each other on a busy machine

# %% [markdown]
# The next cell holds the settings of this chapter. Change one, as in `knobs = {"batch_size": 128}`,
# and run the notebook again: everything below follows.

# %% tags=["parameters"]
knobs = {}

# %%
base = lab.settings(experiment.Knobs, knobs, timeline=True)
mnist = lab.datasets.mnist5k()
shape = tuple(mnist.train_x.shape[1:])
print(f"{len(mnist.train_x):,} training pictures of {shape}, {base.batch_size} in a batch")

# %% [markdown]
# ## 2. Predict
#
# Take a batch and cut it into 8 micro-batches. The sums that are done stay the same: every sample
# goes through the network once, forwards and backwards. Two guesses, before you see anything. A
# wrong one costs nothing, and you may skip them.

# %%
guess_memory = lab.Prediction(
    "Activations kept at once with 8 micro-batches: how many times those of the full batch?",
    low=0.05,
    high=4,
    default=0.5,
    unit="×",
)
guess_memory

# %%
guess_time = lab.Prediction(
    "Time of one update with 8 micro-batches: how many times that of the full batch?",
    low=0.25,
    high=8,
    default=2.0,
    unit="×",
)
guess_time

# %% [markdown]
# ## 3. See
#
# A small convolutional network is trained on handwritten digits: really, now, in this notebook. The
# dashed orange line is the full batch.
#
# Press **Start**. Then move **micro batches** from 1 to 8, and on to 64, and watch three things:
# the activations, the samples per second, and the loss. The last few runs that you leave stay
# behind as grey lines, named at their ends; **Pin** keeps one.

# %%
memory_of_an_update = lab.Sweep(
    "micro_batches",
    "activation_bytes",
    "activations kept, MiB",
    scale=2**-20,
    predicted=experiment.predicted_activation_bytes,
    formula="⌈n/m⌉ · bytes of a sample",
)

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [
        lab.Curve("throughput", "samples/s"),
        memory_of_an_update,
        lab.Curve("loss", "loss", over="updates"),
        lab.Timeline(),
    ],
    controls=["batch_size", "micro_batches", "learning_rate"],
    baselines={"the full batch": {"micro_batches": 1}},
    headline=lab.Headline("activation_bytes", "activations"),
    tour=[base.turned(micro_batches=min(64, base.batch_size)), base.turned(micro_batches=8)],
)
panel

# %% [markdown]
# What to look for:
#
# - The dots of this batch size lie **on** the predicted curve: half the samples at a time, half the
#   activations. (The curve moves with **batch size**. Grey dots of other batch sizes stay where
#   they were measured.)
# - The loss curves lie on one another. Whatever *m* is, the same training happens.
# - The timeline at the lower right shows why nobody should expect a gain in speed: the passes of
#   the micro-batches stand in a row. Nothing runs beside anything else.
# - The throughput is the odd one. Does yours fall when *m* grows, or does it rise first? We come
#   back to it.

# %% [markdown]
# ## 4. Build
#
# This is an update from the full batch, the loop that everybody knows:

# %%
lab.show_source(accumulation.full_batch_update)

# %% [markdown]
# The loss is a mean over the *n* samples of the batch, and a mean can be taken in parts. If
# micro-batch *i* holds $n_i$ samples and its own mean loss is $L_i$, then
#
# $$L = \frac1n \sum_{j=1}^{n} \ell_j = \sum_{i=1}^{m} \frac{n_i}{n} L_i
# \qquad\Rightarrow\qquad \nabla L = \sum_{i=1}^{m} \frac{n_i}{n} \nabla L_i .$$
#
# Two habits of PyTorch turn this into code. `backward()` **adds** to `.grad`, it does not
# overwrite. And once it has run, the activations it needed are let go. First, see that the sum of
# the parts is the whole:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
network = lab.models.cnn().double()
pictures, labels = mnist.train_x[:100].double(), mnist.train_y[:100]

cross_entropy(network(pictures), labels).backward()
whole = [p.grad.clone() for p in network.parameters()]

network.zero_grad()
for x_i, y_i in zip(pictures.split(32), labels.split(32)):  # 32 + 32 + 32 + 4
    (cross_entropy(network(x_i), y_i) * len(y_i) / len(labels)).backward()

gap = max((p.grad - g).abs().max().item() for p, g in zip(network.parameters(), whole))
print("the parts add up to the whole:", gap < 1e-12)

# %% [markdown]
# Now the update, with one line left out. Compare it with the plain one: a loop, and $\ell_j/n$
# added up, so that no mean of a part has to be weighted. The *n* is what the mean of the whole
# batch runs over. For pictures that is the samples; where texts are padded, the padding does not
# count.
#
# Choose the line. Your function is run on the same four parts, and its gradient is compared with
# the whole batch's.


# %%
def gradient_by(update):
    idle = torch.optim.SGD(network.parameters(), lr=0.0)  # leaves the weights as they are
    update(network, idle, zip(pictures.split(32), labels.split(32)))
    ours = {name: p.grad.clone() for name, p in network.named_parameters()}
    return lab.prove({"full batch": [dict(zip(ours, whole))], "yours": [ours]}, steps=1)


# %% jupyter={"source_hidden": true}
lab.MissingLine(
    accumulation.accumulated_update,
    {
        'shares = cross_entropy(model(x), y, reduction="none") / labels': (
            "Each sample's share of the whole batch's mean. The shares of all parts add up to it."
        ),
        'shares = cross_entropy(model(x), y, reduction="none") / len(y)': (
            "Four means are added up: the gradient is about four times too large."
        ),
        'shares = cross_entropy(model(x), y, reduction="none") / len(y) / len(micro_batches)': (
            "The mean of the means: each of the last 4 samples counts 8 times as much as "
            "one of the first 96."
        ),
        'shares = cross_entropy(model(x), y, reduction="sum")': (
            "The sum over all samples: the gradient is 100 times too large."
        ),
    },
    gradient_by,
)

# %% [markdown]
# And the memory? PyTorch tells, through `saved_tensors_hooks`, about each tensor that it keeps for
# the backward pass. Our meter adds up their bytes. This is one update of each kind, over time:

# %% tags=["hero"]
x, y = mnist.train_x[: base.batch_size], mnist.train_y[: base.batch_size]
model = lab.models.cnn()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
histories = {}
for m in (1, 8):
    for _ in range(2):  # the first time warms up
        with lab.ActivationMeter(model, x, y) as meter:
            accumulation.accumulated_update(model, optimizer, accumulation.split(x, y, m))
    histories[f"micro-batches: {m}"] = meter.history
picture, (axes,) = lab.figure.axes(8, 3)
lab.figure.draw_history(axes, histories)
picture

# %% [markdown]
# One mountain, or a row of foothills. The forward pass piles activations up, the backward pass
# frees them, and the peak is what your machine must be able to hold.
#
# *Half-way. This is a good place to stop and come back to: run all cells above, and go on here.*

# %% [markdown]
# ## 5. Prove
#
# Equal gradients once are not yet equal training. So train three copies of a network for ten
# updates each: ours; the full batch; and Hugging Face *Accelerate*, whose `accumulate` is what many
# people use. Momentum and weight decay are on, arithmetic is in float64, so that rounding cannot
# hide a mistake.

# %%
from accelerate import Accelerator


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def full_batch(batches):
    return lab.trajectory(start, sgd, accumulation.full_batch_update, batches)


def ours(batches, m):
    def update(model, optimizer, x, y):
        accumulation.accumulated_update(model, optimizer, accumulation.split(x, y, m))

    return lab.trajectory(start, sgd, update, batches)


# %%
def with_accelerate(batches, m):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=m)

    def update(model, optimizer, x, y):
        for x_i, y_i in accumulation.split(x, y, m):
            with accelerator.accumulate(model):
                loss = cross_entropy(model(x_i), y_i)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    return lab.trajectory(start, lambda model: accelerator.prepare(sgd(model)), update, batches)


# %% tags=["nbval-check-output"]
def batches(size):
    return [(x.double(), y) for x, y in islice(mnist.batches(size), 10)]


torch.manual_seed(0)
start = lab.models.cnn(channels=4).double()


def three_ways(size):
    same = batches(size)
    ways = full_batch(same), ours(same, 8), with_accelerate(same, 8)
    return lab.prove(dict(zip(("full batch", "ours", "Accelerate"), ways)))


proof = three_ways(64)
assert proof.holds
print(proof)

# %%
proof

# %% [markdown]
# All three are the same training. Now a batch of 60, which 8 does not divide: four micro-batches
# hold 8 samples and four hold 7.

# %% tags=["nbval-check-output"]
ragged = three_ways(60)
print(ragged)

# %%
ragged

# %% [markdown]
# This is not a bug in Accelerate: its documentation asks you to weigh the losses yourself when
# micro-batches differ. It divides each loss by *m*, even if the last micro-batch is short. But it
# shows how quietly this goes wrong: the training ran, the loss fell, and it was not the training
# that was asked for.

# %% [markdown]
# ## 6. Measure
#
# Now the speed, properly: full batch and micro-batches in turn, in pairs, on the same data, so that
# what else happens on this machine hits both. The ratio is the time with *m* micro-batches over the
# time of the full batch. **Below 1 is faster.**

# %%
torch.manual_seed(0)
model = lab.models.cnn()
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)


def updating(m):
    parts = accumulation.split(x, y, m)
    return lambda: accumulation.accumulated_update(model, optimizer, parts)


counts = [m for m in (2, 4, 8, 16, 32, 64) if m <= base.batch_size]
ratios = {
    m: lab.compare(updating(m), updating(1), names=(f"m = {m}", "full batch"), patience=1.0)
    for m in counts
}
for ratio in ratios.values():
    print(ratio)

# %%
memory = {m: lab.memory_of(updating(m), model, x, y) for m in (1, *counts)}
sizes = {
    "activations": {m: found["activation_bytes"] / 2**20 for m, found in memory.items()},
    "process": {m: found["process_peak_bytes"] / 2**20 for m, found in memory.items()},
}
by_formula = {
    m: experiment.predicted_activation_bytes(base.turned(micro_batches=m)) for m in memory
}
by_formula = {m: bytes / 2**20 for m, bytes in by_formula.items()}

# %% jupyter={"source_hidden": true}
picture, (left, right) = lab.figure.axes(9.5, 3.2, columns=2)
for axes in (left, right):
    lab.figure.powers_of_two(axes, "micro-batches", memory)
lab.figure.draw_ratios(left, ratios, "time of an update, × full batch")
lab.figure.draw_guess(left, {8: guess_time.value})
left.legend(frameon=False, fontsize=8)
right.set(yscale="log", ylabel="memory, MiB")
lab.figure.draw_lines(right, sizes, dashed={"predicted": by_formula})
picture

# %%
share = sizes["activations"][8] / sizes["activations"][1]
guess_memory.against(share)

# %%
guess_time.against(ratios[8])

# %% [markdown]
# Two effects can pull at the time. Which of them acts on your machine is not measured here.
#
# - **Faster**, on a CPU: the activations of a micro-batch may stay in the processor's cache, and
#   the next micro-batch can use the memory that the last one freed, instead of asking the operating
#   system for more.
# - **Slower**: each call into PyTorch costs some microseconds, however little it has to do, and
#   there are *m* times as many calls. On a GPU a few cuts are enough to show it.

# %%
faster = [m for m, ratio in ratios.items() if ratio.proved and ratio.ratio < 1]
slower = [m for m, ratio in ratios.items() if ratio.proved and ratio.ratio > 1]
print("surely faster than the full batch here: m =", faster or "none")
print("surely slower than the full batch here: m =", slower or "none")

# %% [markdown]
# Speed is only a side effect here, and the two lines above say whether your machine gains any.
# Memory is the purpose.
#
# *Process* is the operating system's view: by how much the whole process grew. It includes more
# than the activations, because gradients need room on their way back, too. Compare the two curves
# on the right: does it fall with them?

# %% [markdown]
# ## 7. Break it
#
# Five famous ways to get it wrong, one click each. Below, every update is repeated from the same
# weights with the full batch, and the difference of the two is drawn: the *error of the update*, 1
# meaning that all of it is wrong. Rounding alone gives about 10⁻⁶.
#
# Press **Start**, then click through the mistakes. Try *unweighted* with a batch size of 250, too.
# Which of them would you have noticed from the loss?

# %%
broken = base.turned(twin=True, timeline=False, micro_batches=min(8, base.batch_size))
mistakes = {"no scaling": {}, "unweighted": {"batch_size": 250}}
mistakes |= {"off by one": {}, "forgotten clear": {}, "batch norm": {}}
right = lab.Badge(
    "update_error", 1e-4, "every update is the full batch's", "not the full batch's update"
)
error = lab.Curve("update_error", "error of the update", over="updates", log=(1e-8, 1e2))

# %%
break_it = lab.Panel(
    experiment.run,
    broken,
    [error, lab.Curve("loss", "loss", over="updates")],
    controls=["batch_size", "micro_batches", "mistake"],
    baselines={"no mistake": {"mistake": "none"}},
    headline=None,
    tour=[broken.turned(mistake=mistake, **others) for mistake, others in mistakes.items()],
    seconds=1.0,
    badge=right,
)
break_it

# %% [markdown]
# Write down which mistakes the loss shows and which it hides, then look.
#
# <details><summary>What each of them does</summary>
#
# - **no scaling** adds up means: the gradient is *m* times too large, as if the learning rate had
#   been multiplied by *m*. (Adam divides by the gradient's own size and hides this mistake almost
#   entirely. That may be why it lives on.)
# - **unweighted** is *right*, as long as all micro-batches have one size. With 8 micro-batches of a
#   batch of 250 they have not.
# - **off by one** is the popular `if step % accumulate_steps == 0`: it fires at step 0. Each update
#   mixes the gradients of two batches.
# - **forgotten clear** never empties `.grad`: each update repeats all the former ones. For a while
#   it looks good, like momentum, but it never forgets.
# - **batch norm** is not a bug in the loop. Batch normalization computes mean and variance over
#   the samples it sees, and now it sees one micro-batch. No weight repairs it: the model itself
#   does not split. Group or layer normalization does. (It is another network, so compare its error
#   with that of the others, not its loss.)
#
# </details>
#
# Here is the code of each, as short as it is dangerous:

# %%
lab.show_source(experiment.no_scaling, docstring=False)

# %%
lab.show_source(experiment.unweighted, experiment._backward_of_each, docstring=False)

# %%
lab.show_source(experiment.off_by_one, docstring=False)

# %%
lab.show_source(experiment.forgotten_clear, docstring=False)

# %% [markdown]
# *Unweighted* cannot be seen in the loss: that is the one to fear. In 2024 it was found, in the
# form that counts tokens instead of samples, in widely used libraries for training language
# models. The first exercise is that case.

# %%
for mistake in ("none", "no scaling", "unweighted"):
    settings = broken.turned(
        twin=False, mistake=mistake, batch_size=250, optimizer="adam", learning_rate=0.002
    )
    steps = list(islice(experiment.run(settings), 25))
    print(f"Adam, {mistake:<10}: loss {steps[-1].metrics['loss']:.3f} after 25 updates")

# %% [markdown]
# ## 8. When it does not help
#
# Accumulation makes large batches *possible*. It does not make them *useful*. Suppose the large
# batch fits already, or the small one would do: then accumulating only delays the optimizer. Here
# are equal numbers of samples, spent in three ways, each with the best of a few learning rates. (A
# larger batch, whose gradient is less noisy, often bears a larger one; look whether it did here.)

# %%
plain = base.turned(timeline=False, micro_batches=1)
samples, spent = round(24 * lab.effort()) * base.batch_size, {}
large = experiment.with_best_rate(plain, samples)
small = experiment.with_best_rate(plain.turned(batch_size=max(8, base.batch_size // 8)), samples)
ways = {"full batch": large, "accumulated": large.turned(micro_batches=8), "small batches": small}

# %%
for way, settings in ways.items():
    steps = list(islice(experiment.run(settings), samples // settings.batch_size))
    spent[way] = {settings.batch_size * (step.index + 1): step.metrics["loss"] for step in steps}
    took, last = sum(step.seconds for step in steps), median([*spent[way].values()][-5:])
    print(f"{way:<14} rate {settings.learning_rate:<5g} {len(steps):>4} updates, {took:4.1f} s")
    print(f"{'':14} loss {last:.2f}, the median of the last five updates")

# %% jupyter={"source_hidden": true}
picture, (axes,) = lab.figure.axes(8, 3)
axes.set(xlabel="samples seen", ylabel="loss", ylim=(0, None))
lab.figure.draw_lines(axes, spent, points=False)
picture

# %% [markdown]
# With the memory of small batches you could have *taken* small batches, and stepped after each of
# them. If the loss falls faster that way, as it usually does early in training, accumulation was
# the wrong tool. It earns its place where a batch must be large for a reason: a gradient too noisy
# to follow, a recipe that was tuned for that batch size, or many workers that should talk to each
# other rarely.
#
# So, about the two claims from the start: the verdict, for this machine.

# %%
best = min(ratios, key=lambda m: ratios[m].ratio)
slowest = ratios[counts[-1]]
how = "faster" if ratios[best].proved and ratios[best].ratio < 1 else "not faster"
verdict = (
    f"8 micro-batches keep {share:.3f} × the activations; best time {ratios[best].ratio:.2f} × the "
    f"full batch's at m = {best} ({how}), {slowest.ratio:.2f} × at m = {counts[-1]}"
)
lab.log_verdict("accumulation", verdict)

# %% [markdown]
# ## 9. Exercises
#
# Write the functions and run the cells; `check` tries each on fresh data. It says what is right
# already, shows a small case that is not, and gives a hint where it knows the mistake. After two
# different tries it offers a worked solution. Some functions are written already, with faults:
# repair them.

# %%
from accel_lab.grading.practice import check, exercises

TOKENS, LOOP, PLAN = exercises("accumulation")
TOKENS


# %% tags=["exercise"]
def token_update(model, optimizer, micro_batches):
    raise NotImplementedError


check(token_update)

# %%
LOOP


# %% tags=["exercise"]
def train_epoch(model, optimizer, loader, accumulate):
    updates = 0
    for step, (x, y) in enumerate(loader):
        loss = cross_entropy(model(x), y) / accumulate
        loss.backward()
        if step % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            updates += 1
    return updates


check(train_epoch)

# %%
PLAN


# %% tags=["exercise"]
def fewest_micro_batches(batch_size, bytes_per_sample, budget):
    raise NotImplementedError


check(fewest_micro_batches)

# %% [markdown]
# ## 10. Take away
#
# - Gradient accumulation saves memory, and may cost time: activations fall as 1/*m*. The weights
#   that come out are those of the full batch, except for rounding.
# - Weigh every micro-batch by its share of what the mean runs over: samples, or tokens.
# - Step, clip and advance the schedule once a batch. Clear once a batch.
# - It does not split what looks across samples, such as batch normalization.
# - It speeds nothing up by design: where a cut is faster, the reason is in the machine. The
#   weights, their gradients and the optimizer's state take as much room as before.

# %% [markdown]
# Related, and not measured here: *activation checkpointing* computes activations twice instead of
# keeping them (T. Chen et al., 2016, arXiv:1604.06174), and goes together with accumulation. In
# half precision the sum of many small gradients loses digits, so it is kept in float32. On several
# ranks the gradients are averaged once, with the last micro-batch: PyTorch's `no_sync` holds the
# others back.

# %% [markdown]
# **What would prove this wrong?** A model without batch normalization, and a loss that is a mean
# over samples, whose accumulated training differs from the full batch's by more than rounding. If
# you find one, look for something random first: dropout draws other masks. (A contrastive loss
# compares the samples of a batch with each other, and sees fewer of them in a micro-batch.)

# %% [markdown]
# **Sources.** P. Goyal et al., *Accurate, Large Minibatch SGD*, 2017, arXiv:1706.02677, sections 2
# and 3 · Y. Huang et al., *GPipe*, 2019, arXiv:1811.06965, for micro-batches · Hugging Face,
# *Fixing Gradient Accumulation*, October 2024, for the token count.
#
# **Next.** An update takes the gradient as it comes, from one batch or from its parts. What can a
# single bad batch do to the weights? [Chapter 12](12_clipping.ipynb) sets it a limit. The other
# chapters are listed on the [first page](00_start_here.ipynb).
