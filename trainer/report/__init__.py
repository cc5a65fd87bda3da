"""The Sim2Real report: one self-contained page about a run (`trainer.report.build`)."""
