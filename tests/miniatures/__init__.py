"""Downloads in miniature, one module a source, made from how the real ones look."""

from __future__ import annotations


def exams_of(found):
    """{name: exam} of what was found."""
    return {exam.name: exam for exam in found.exams}


def reasons(found, of="subject"):
    """{name: reason} of what was left out of this kind."""
    return {exam.name: exam.reason for exam in found.left_out if exam.of == of}
