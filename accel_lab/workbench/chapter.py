"""The one face of the workbench for chapters: all that a cell uses, from one import.

from accel_lab.workbench.chapter import Curve, Panel, Prediction, compare, prove, show_source
"""

from accel_lab.workbench import models
from accel_lab.workbench.data import datasets, words
from accel_lab.workbench.device import pick_device, threads
from accel_lab.workbench.drawing import figure
from accel_lab.workbench.drawing.budget import Budget
from accel_lab.workbench.drawing.chart import Badge
from accel_lab.workbench.drawing.curve import Curve
from accel_lab.workbench.drawing.heat_map import HeatMap
from accel_lab.workbench.drawing.histogram import Histogram
from accel_lab.workbench.drawing.pareto import Pareto
from accel_lab.workbench.drawing.sweep import Sweep
from accel_lab.workbench.drawing.timeline import Timeline
from accel_lab.workbench.effort import effort
from accel_lab.workbench.loop import NonFiniteLoss, classifier_update, train
from accel_lab.workbench.measure.comparison import Comparison, compare, reading
from accel_lab.workbench.measure.machine import Machine, low_precision, usable_cores
from accel_lab.workbench.measure.memory_meter import ActivationMeter, memory_of, process_peak
from accel_lab.workbench.measure.proof import Twin, prove, snapshot, trajectory
from accel_lab.workbench.measure.race import break_even, compared, race, race_on_ranks
from accel_lab.workbench.measure.roofline import Operation, Roofline, fastest, roofline
from accel_lab.workbench.measure.traffic import bytes_written
from accel_lab.workbench.notebook.source import show_source
from accel_lab.workbench.notebook.speed_log import SpeedLog, log_verdict
from accel_lab.workbench.notebook.syllabus import Syllabus
from accel_lab.workbench.panel import Panel, Prediction, Sliders
from accel_lab.workbench.ranks.launch import RankFailed, collect, launch
from accel_lab.workbench.ranks.rank import RankSpanRecorder
from accel_lab.workbench.spans import SpanRecorder
from accel_lab.workbench.step import Span, Step
