"""Learning by doing: backward passes to write, and mistakes to find.

tasks/         the exercises, a file each, with model solutions
task.py        what is read from such a file, and the learner's file that is made of it
puzzles.py     model solutions with one mistake
grading.py     whether a learner's file is right, and the next hint
"""

from tinydiff.exercises.grading import Grade, grade
from tinydiff.exercises.puzzles import PUZZLES, Puzzle, puzzle
from tinydiff.exercises.task import Task, task, tasks

__all__ = ["PUZZLES", "Grade", "Puzzle", "Task", "grade", "puzzle", "task", "tasks"]
