# SPDX-License-Identifier: LGPL-2.1-or-later
# The front door. meson and ninja do the work, in build/; see CONTRIBUTING.md.
.POSIX:

help:
	@echo 'make demo     install what is missing, build, show a recall on real files (build/demo.html)'
	@echo 'make check    install what is missing, build, run every test; the last line is the sum'
	@echo 'make stress   churn against lookups, transfers and recalls, also under sanitizers; SEED=N OPS=N'
	@echo 'make chaos    kill pinleased, holders and actors at any moment and look what is left of the promises; SEED=N TIME=SECONDS [60]'
	@echo 'make bench    build, measure what leases cost; six minutes, QUICK=1 under 90 s (bench/README.md)'
	@echo 'make model    install spin, check the protocol of recalls in all its states, then that broken rules are found'
	@echo 'make fuzz     install clang, feed the decoder of the arbiter'"'"'s messages any bytes; TIME=SECONDS [60]'
	@echo 'make build    only build, in build/'
	@echo 'make install  install what was built (DESTDIR= is honoured)'
	@echo 'make format   put the C files into the form of .clang-format'
	@echo 'make clean    remove the build directories'

demo:
	@scripts/deps build
	@$(MAKE) --no-print-directory build/build.ninja
	ninja -C build tools/pinlease/pinlease
	build/tools/pinlease/pinlease demo --html build/demo.html

check:
	@scripts/deps check
	@scripts/check

SEED =
OPS = 1000000
stress:
	@scripts/deps check
	@PINLEASE_TEST_SEED='$(SEED)' PINLEASE_TEST_OPS='$(OPS)' scripts/check stress

bench:
	@scripts/deps build
	@$(MAKE) --no-print-directory build/build.ninja
	ninja -C build bench/pinlease-bench daemon/pinleased
	@scale=full; [ -z "$(QUICK)" ] || scale=quick; bench/run.py build/bench/pinlease-bench --scale $$scale

model:
	@scripts/deps model
	@model/run
	@$(MAKE) --no-print-directory model-mutations

model-mutations:
	@scripts/deps model
	@model/run --mutations

TIME = 60
chaos:
	@scripts/deps check
	@$(MAKE) --no-print-directory build/build.ninja
	@ninja -C build daemon/pinleased tests/test_chaos
	PINLEASE_TEST_SEED='$(SEED)' PINLEASE_TEST_SECONDS='$(TIME)' PINLEASED=build/daemon/pinleased build/tests/test_chaos

fuzz:
	@scripts/deps fuzz
	@scripts/fuzz '$(TIME)'

build: build/build.ninja
	ninja -C build

# Tests need cmocka, which only `make check` installs.
build/build.ninja:
	meson setup build -Dtests=false

install: build
	meson install -C build --no-rebuild

format:
	scripts/format

clean:
	rm -rf build build-asan build-tsan

.PHONY: help demo check stress chaos bench model model-mutations fuzz build install format clean
