"""What the operator's SSH key may ask a node for, and what answers there.

=========  =====================================================================================
door       what sshd starts: passes the question on, and the answer back; no rights of its own
__main__   answers one question as root
jobs       has the steps done by which space is freed, each as a unit of its own
space      such a unit
clients    what it does for a client node
replacing  has another node put in the place of one, by a unit of its own
replace    that unit
=========  =====================================================================================

The questions and answers are in ``access/questions.py``, which the operator reads as well.
"""
