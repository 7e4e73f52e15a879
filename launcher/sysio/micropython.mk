# A user C module of MicroPython, as its documentation asks for it ("MicroPython external C modules").
SRC_USERMOD_C += $(USERMOD_DIR)/modsysio.c
