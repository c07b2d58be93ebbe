# Everything is done by dev.py, which works without make as well: python dev.py test
PYTHON ?= python3
COMMANDS := setup demo test check bench

.PHONY: $(COMMANDS)
.NOTPARALLEL:

$(COMMANDS):
	@$(PYTHON) dev.py $@ $(ARGS)
