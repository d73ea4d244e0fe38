# ---
# jupyter:
#   kernelspec:
#     name: python3
#     display_name: Python 3
# ---

# %% [markdown]
# # Start here
#
# Training a network takes long, and there are many ways to make it take less: split the batch,
# split the model, use more processes, learn from a larger network. You will read that each of them
# makes training faster. Some of these claims are true, some only on other machines, some nowhere.
#
# This course lets you find out. You need no GPU and no data set: everything runs on the machine
# that this notebook runs on, with real models and real data, while you turn the knobs. You should
# have trained a network in PyTorch before, however small.
#
# Run a cell with **Shift + Enter**, and go on.

# %% jupyter={"source_hidden": true}
from accel_lab.experiments import ddp as experiment
from accel_lab.workbench import chapter as lab

# %% jupyter={"source_hidden": true} tags=["parameters"]
knobs = {}

# %% jupyter={"source_hidden": true}
base = lab.settings(experiment.Knobs, knobs, ranks=1)

# %% [markdown]
# ## A taste
#
# A small network learns to read handwritten digits. One process trains it. Now let **two
# processes** do it together: each takes half of every batch, and before the weights change they
# agree on one gradient.
#
# What do you expect? Run the next cell, move its slider and commit. Nobody keeps score, and you
# may skip it.

# %%
guess = lab.Prediction(
    "Two processes share every batch, half each. How many times the samples per second of one?",
    low=0.1,
    high=4,
    default=2.0,
    unit="×",
)
guess

# %% [markdown]
# Now look. Press **Start**: one process trains. Then move **ranks** from 1 to 2; a *rank* is one of
# the processes that train together. (With the keyboard: Tab to the knob, then the arrow keys.)

# %%
panel = lab.Panel(
    experiment.run,
    base,
    [lab.Curve("throughput", "samples/s"), lab.Timeline()],
    controls=["ranks", "width"],
    baselines={"one process": {"ranks": 1}},
    tour=[base.turned(ranks=2)],
)
panel

# %% [markdown]
# A picture is not yet a measurement: a computer is never quiet. So the panel stops, the two take
# turns, again and again, and only the ratio within each pair counts: the time of an update by two
# processes over that by one.

# %%
quiet = base.turned(timeline=False)
by_two, by_one = "an update by two processes", "an update by one"
ways = {by_two: quiet.turned(ranks=2), by_one: quiet.turned(ranks=1)}
race = lab.compared(lab.race(experiment.run, ways), by_two, by_one)
race

# %%
guess.against(race, inverse=True)

# %% [markdown]
# Two workers, so 2 is the natural guess. On a small machine the answer is much less, perhaps less
# than 1: twice the workers, and slower. The timeline shows why. *Forward* and *backward* are half
# as much work as before, but there is something else to do: each process sends a gradient as large
# as the model (*bucket* in the timeline), and waits for the other's.
#
# So are more workers a bad idea? Make **width** larger, the number of units in each layer. One
# process is run again with it, and the large line compares. There is more to compute now for each
# update, and more to send, too; who wins?
#
# That is what chapter 16 is about, and this is how the whole course goes: say what you expect,
# look, measure, and find out *when* a technique helps and when it does not.

# %% [markdown]
# ## What this machine has
#
# Every verdict in this course is one about the machine in front of you. This is what yours can
# show:

# %%
lab.Machine()

# %% [markdown]
# ## How a chapter works
#
# Each chapter takes one technique, and goes the same way:
#
# 1. **The question**, and what people say about it.
# 2. **Predict**: commit to a number.
# 3. **See**: a panel like the one above. Start it, move a knob while it trains, compare with the
#   runs you left. The large line compares your run with the baseline, which takes over all your
#   knobs but the one that it is named for. **Stop** ends a run (so do two minutes), **Pin** keeps
#   one, **Clear** forgets all but the baseline, **Reset** turns the knobs back.
# 4. **Build**: the idea step by step, each step checked, next to the plain loop that you know. One
#   line is left to you.
# 5. **Prove**: the same result as the slow and obvious way, and as PyTorch's own, to the last
#   digits.
# 6. **Measure**: properly, with the spread, and your prediction marked.
# 7. **Break it**: the famous mistakes, one click each. Some of them cannot be seen in the loss.
# 8. **When it does not help**, which every technique has, and the verdict for your machine.
# 9. **Exercises**: you write it, and are told what is wrong and why.
# 10. **Take away**: the few sentences worth keeping, and the sources.
#
# You can stop anywhere and come back. If something hangs, *Kernel → Restart and Run All* begins
# anew. Nothing is downloaded; what is written are your guesses, points and speed log, in your home
# directory. (A page that is loaded anew before all cells of a chapter were run shows the picture of
# a panel: run its cell again.)
#
# Open one chapter at a time if memory is short, and shut its kernel down when you leave it.

# %% [markdown]
# ## The chapters
#
# Begin with *Measuring honestly*: the others build on it. After that, take them in any order.

# %%
lab.Syllabus()

# %% [markdown]
# The times are for reading, running and thinking, the exercises included. What you find out at the
# end of each chapter appears here, and in your speed log, when you run these cells again. A chapter
# counts as done when its verdict is there and all its exercises are solved.

# %%
lab.SpeedLog.of_the_reader()

# %% [markdown]
# ## Glossary
#
# One sentence for each word of the field, and the chapter that explains it:
#
# - **1F1B** ([18](18_pipeline.ipynb)): A pipeline schedule, *one forward, one backward*: each
#   stage turns back as soon as it can, and so holds fewer activations than under GPipe.
# - **activations** ([18](18_pipeline.ipynb)): What a layer computes on the way forward, and keeps
#   until its backward pass.
# - **all-gather** ([16](16_ddp.ipynb)): Every rank ends with the pieces of all ranks; the second
#   half of a ring's all-reduce.
# - **all-reduce** ([16](16_ddp.ipynb)): Tensors of all ranks are added up, and every rank gets the
#   sum.
# - **arithmetic intensity** ([01](01_measuring.ipynb)): FLOPs divided by the bytes that have to
#   move for them.
# - **backward pass** ([11](11_accumulation.ipynb)): Computes the gradient of the loss, from the
#   last layer to the first.
# - **bfloat16** ([13](13_precision.ipynb)): A floating-point number of 16 bits, with the range of
#   float32 and 8 significant bits.
# - **bubble** ([18](18_pipeline.ipynb)): The share of all ranks' time in which a rank of a
#   pipeline has nothing to do.
# - **bucket** ([16](16_ddp.ipynb)): Several gradients that travel together in one message, while
#   backward goes on.
# - **bucketing** ([08](08_recurrent.ipynb)): Puts sentences of like length into one batch, so that
#   little has to be filled.
# - **cache** ([06](06_caching.ipynb)): Keeps what was expensive to make for the next time it is
#   asked for.
# - **chunk** ([16](16_ddp.ipynb)): One of the *p* equal parts of a tensor that go round a ring of
#   *p* ranks.
# - **critical batch size** ([02](02_minibatch.ipynb)): The batch beyond which more samples hardly
#   save updates.
# - **data parallelism** ([16](16_ddp.ipynb)): Each rank holds the whole model and takes a part of
#   every batch.
# - **dropout** ([07](07_structure.ipynb)): Some units are left out in training, other ones each
#   time.
# - **embedding** ([05](05_text.ipynb)): The vector of numbers that stands for a word: a row of a
#   table.
# - **epoch** ([02](02_minibatch.ipynb)): Every training sample is used once, in an order that
#   chance picks.
# - **exponential moving average** ([14](14_averaging.ipynb)): A running mean in which each value
#   counts less the older it is; EMA for short.
# - **fine-tuning** ([10](10_transfer.ipynb)): Goes on with the training of weights that were
#   trained for another task.
# - **FLOP** ([01](01_measuring.ipynb)): A floating-point operation, one addition or
#   multiplication; FLOP/s is how many a second.
# - **forget gate** ([08](08_recurrent.ipynb)): Decides how much of its old state an LSTM keeps.
# - **frozen** ([10](10_transfer.ipynb)): Neither the weights nor the statistics of a layer change
#   in training.
# - **global norm** ([12](12_clipping.ipynb)): The length of all gradients taken as one vector: the
#   root of the sum of all squares.
# - **GPipe** ([18](18_pipeline.ipynb)): A pipeline schedule: all forwards, then all backwards.
# - **gradient accumulation** ([11](11_accumulation.ipynb)): The gradients of several micro-batches
#   are added up, and the weights are updated once.
# - **gradient clipping** ([12](12_clipping.ipynb)): Gradients that are larger than a limit are
#   made smaller before the optimizer's step.
# - **head** ([10](10_transfer.ipynb)): The new last layer of a network that is taken over.
# - **hyper-parameter** ([09](09_search.ipynb)): A setting that training does not find, such as the
#   learning rate.
# - **interval** ([01](01_measuring.ipynb)): The ratios of two programs' times that the measured
#   pairs leave possible, with 99 % certainty.
# - **local SGD** ([17](17_parameter_server.ipynb)): Several updates at each worker by itself, then
#   one average of all workers' weights.
# - **logits** ([19](19_distillation.ipynb)): What a classifier's last layer gives for each class;
#   softmax turns them into probabilities.
# - **loss scaling** ([13](13_precision.ipynb)): The loss is multiplied by a factor, so that small
#   gradients do not become 0 in float16; before the step the gradients are divided by it.
# - **micro-batch** ([11](11_accumulation.ipynb)): A part of a batch that goes through the network
#   by itself.
# - **mini-batch** ([02](02_minibatch.ipynb)): The samples that one update looks at: more than one,
#   fewer than all.
# - **mixed precision** ([13](13_precision.ipynb)): Products are computed in 16 bits, weights are
#   kept in 32.
# - **noise scale** ([02](02_minibatch.ipynb)): The batch whose gradient has as much noise as
#   signal, tr(Σ)/‖G‖², in samples.
# - **one-hot** ([05](05_text.ipynb)): A vector with a 1 at the place of its word and zeros
#   elsewhere.
# - **packing** ([08](08_recurrent.ipynb)): Computes a batch of sentences without filling: those
#   that have ended leave the batch.
# - **pair** ([01](01_measuring.ipynb)): Two programs, timed within moments of each other; only the
#   ratio of the two counts.
# - **parameter server** ([17](17_parameter_server.ipynb)): A process that keeps the weights;
#   workers pull them and push gradients.
# - **persistent workers** ([06](06_caching.ipynb)): Loading processes that stay when an epoch
#   ends, and with them what they have cached.
# - **pipeline** ([18](18_pipeline.ipynb)): Consecutive layers lie on different ranks, and
#   micro-batches flow through them.
# - **rank** ([16](16_ddp.ipynb)): One of the processes that train together, and its number, from
#   0.
# - **recomputation** ([15](15_memory.ipynb)): Activations are forgotten on the way forward, and
#   computed again when the backward pass needs them.
# - **recurrent network** ([08](08_recurrent.ipynb)): Reads a sentence word by word and keeps a
#   state.
# - **reduce-scatter** ([16](16_ddp.ipynb)): Tensors of all ranks are added up, and each rank gets
#   one piece of the sum; the first half of a ring's all-reduce.
# - **replay** ([17](17_parameter_server.ipynb)): A parallel run repeated in one process, from a log
#   of the order in which its messages arrived.
# - **residual connection** ([07](07_structure.ipynb)): What went into a layer is added to what
#   comes out of it, so that the gradient has a way past it.
# - **ridge** ([01](01_measuring.ipynb)): The arithmetic intensity at which the limit of bytes and
#   the limit of FLOPs meet.
# - **ring** ([16](16_ddp.ipynb)): An order of ranks in which each sends to the next only, and
#   receives from the one before.
# - **roofline** ([01](01_measuring.ipynb)): The most FLOP/s that a machine allows, by its
#   arithmetic and by its memory, for each arithmetic intensity.
# - **rung** ([09](09_search.ipynb)): A level of a successive halving: so many candidates, so many
#   epochs.
# - **segments** ([15](15_memory.ipynb)): The parts of a chain of layers of which recomputation
#   keeps no more than what enters them.
# - **shared memory** ([06](06_caching.ipynb)): Memory that several processes see, so that one
#   cache serves all of them.
# - **stage** ([18](18_pipeline.ipynb)): The consecutive layers that one rank of a pipeline holds.
# - **staleness** ([17](17_parameter_server.ipynb)): How many updates were made between a worker's
#   pull of the weights and its push.
# - **stochastic rounding** ([13](13_precision.ipynb)): A number is rounded up or down by chance,
#   so that the mean is right.
# - **stop words** ([05](05_text.ipynb)): Frequent words that a list declares to be empty.
# - **straggler** ([17](17_parameter_server.ipynb)): A worker that is much slower than the others.
# - **successive halving** ([09](09_search.ipynb)): Trains many candidates a little, keeps the
#   best, trains these longer, and so on.
# - **teacher** ([19](19_distillation.ipynb)): A trained model whose outputs a smaller one, the
#   *student*, learns from.
# - **temperature** ([19](19_distillation.ipynb)): Logits are divided by it before softmax; a high
#   one makes the probabilities more alike.
# - **throughput** ([11](11_accumulation.ipynb)): Samples per second of training.
# - **tokens** ([05](05_text.ipynb)): What a text is cut into: words and signs.
# - **transfer learning** ([10](10_transfer.ipynb)): Begins with a network that was trained for
#   another task.
# - **trunk** ([10](10_transfer.ipynb)): The front part of a network that is taken over.
# - **warm-up** ([01](01_measuring.ipynb)): What a program does slowly the first time; it runs once
#   or more before it is timed.
# - **world size** ([16](16_ddp.ipynb)): The number of ranks, *p*.

# %% [markdown]
# ## The library below
#
# Each technique is one file, meant to be read and to be used: `accel_lab/ddp.py` is what you just
# ran. The same runs can be had without a notebook:
#
# ```
# python -m accel_lab list
# python -m accel_lab run ddp --ranks 2 --width 1024
# ```
#
# Now open the first chapter, [measuring honestly](01_measuring.ipynb). Enjoy being surprised.
