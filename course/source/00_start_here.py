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
# split the model, use more processes, learn from a larger network. About each of them you can read
# that it makes training faster. Some of that is true, some of it is true on other machines, and
# some of it never was.
#
# This course lets you find out. You need no GPU and no data set, only this page and a little
# patience: everything runs on the machine that this notebook runs on, with real models and real
# data, while you turn the knobs. You should have trained a network in PyTorch before, however
# small.
#
# Ten minutes for this page. Run a cell with **Shift + Enter**, and go on.

# %%
from itertools import islice
from statistics import median

from accel_lab.experiments import ddp as experiment
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.measure.comparison import Comparison
from accel_lab.workbench.measure.machine import Machine
from accel_lab.workbench.notebook.speed_log import SpeedLog
from accel_lab.workbench.notebook.syllabus import Syllabus
from accel_lab.workbench.panel import Panel, Prediction

# %% tags=["parameters"]
knobs = {}

# %%
base = experiment.Knobs(**{"ranks": 1, **knobs})

# %% [markdown]
# ## A taste
#
# A small network learns to read handwritten digits. One process trains it. Now let **two
# processes** do it together: each takes half of every batch, and before the weights change they
# agree on one gradient.
#
# What do you expect? Move the slider and commit. Nobody keeps score, and you may skip it.

# %%
guess = Prediction(
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
panel = Panel(
    experiment.run,
    base,
    [Curve("throughput", "samples/s"), Timeline()],
    controls=["ranks", "width"],
    baselines={"one process": base.turned(ranks=1)},
    tour=[base.turned(ranks=2)],
)
panel

# %% [markdown]
# A picture is not yet a measurement: a computer is never quiet. So the two are timed in turn, again
# and again, and only the ratio within each pair counts.


# %%
def seconds_of_an_update(ranks):
    steps = list(islice(experiment.run(base.turned(ranks=ranks, timeline=False)), 25))
    return median(step.seconds for step in steps[5:])  # the first ones warm up


pairs = []
for turn in range(8):
    order = (1, 2) if turn % 2 else (2, 1)
    seconds = {ranks: seconds_of_an_update(ranks) for ranks in order}
    pairs.append((seconds[2], seconds[1]))
race = Comparison.of(pairs, names=("an update by two processes", "an update by one"))
race

# %%
guess.against(1 / race.ratio)

# %% [markdown]
# Most people say 2, or a little less. If your machine is small, it said much less, perhaps less
# than 1: twice the workers, and slower. The timeline shows why. The blue and orange pieces are half
# as much work as before, but now there is something else to do: both have to send a gradient as
# large as the model and wait for the other's.
#
# So are more workers a bad idea? Stop, make **width** larger, the number of units in each layer,
# and try one and two ranks again. There is more to compute now for each update, and more to send,
# too; who wins? That is what chapter 16 is about, and this is how the whole course goes: say what
# you expect, look, measure, and find out *when* a technique helps and when it does not.

# %% [markdown]
# ## What this machine has
#
# Every verdict in this course is one about the machine in front of you. This is what yours can
# show:

# %%
Machine()

# %% [markdown]
# ## How a chapter works
#
# Each chapter takes one technique, and goes the same way:
#
# 1. **The question**, and what people say about it.
# 2. **Predict**: commit to a number.
# 3. **See**: a panel like the one above. Start it, move a knob while it trains, compare with the
#   runs you left. **Pin** keeps a run.
# 4. **Build**: the idea step by step, each step checked, next to the plain loop that you know.
# 5. **Prove**: the same result as the slow and obvious way, and as PyTorch's own, to the last
#   digits.
# 6. **Measure**: properly, with the spread, and your prediction marked.
# 7. **Break it**: the famous mistakes, one click each. Some of them cannot be seen in the loss.
# 8. **When it does not help**, which every technique has, and the verdict for your machine.
# 9. **Exercises**: you write it, and are told what is wrong and why.
# 10. **Take away**: the few sentences worth keeping, and the sources.
#
# You can stop anywhere and come back. If something hangs, *Kernel → Restart and Run All* begins
# anew; nothing is downloaded, and nothing is written but your speed log, in your home directory.
# Open one chapter at a time if memory is short, and shut its kernel down when you leave it.
#
# ## The chapters
#
# Begin with *Measuring honestly*: the others build on it. After that, take them in any order.

# %%
Syllabus()

# %% [markdown]
# The times are for reading, running and thinking, the exercises included. What you find out at the
# end of each chapter appears here, and in your speed log, when you run these cells again:

# %%
SpeedLog.of_the_reader()

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
# Now open the first chapter. Enjoy being surprised.
