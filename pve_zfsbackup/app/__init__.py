"""Use cases: gather, plan, execute, report, per stage; each guest isolated."""
