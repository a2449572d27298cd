# SPDX-License-Identifier: LGPL-2.1-or-later
# The front door. meson and ninja do the work, in build/; see CONTRIBUTING.md.
.POSIX:

help:
	@echo 'make demo     install what is missing, build, show a recall on real files (build/demo.html)'
	@echo 'make check    install what is missing, build, run every test; the last line is the sum'
	@echo 'make check-vm install what is missing, build, run tests in virtual machines on Debian'"'"'s kernels (vm/run)'
	@echo 'make kernel-support write docs/kernel-support.md anew, from what pinlease doctor finds there'
	@echo 'make file-operations the same of docs/file-operations.md and the table in README.md, from what becomes of changes of files there'
	@echo 'make stress   churn against lookups, transfers and recalls, also under sanitizers; SEED=N OPS=N'
	@echo 'make chaos    kill pinleased, holders and actors at any moment and look what is left of the promises; SEED=N TIME=SECONDS [60]'
	@echo 'make bench    build, measure what leases cost; six minutes, QUICK=1 under 90 s (bench/README.md)'
	@echo 'make bench-vm  the same of devices, in a virtual machine that has some; two minutes (bench/README.md)'
	@echo 'make bench-pins  what following pins costs who pins, in instructions, in a virtual machine; three minutes'
	@echo 'make model    install spin, check the protocol of recalls in all its states, then that broken rules are found'
	@echo 'make fuzz     install clang, feed the decoders any bytes; TIME=SECONDS [60] for each'
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

check-vm:
	@scripts/deps vm
	@scripts/check vm

# What the job finds is compared with the document that is being written, so its result is left out.
kernel-support:
	@scripts/deps vm
	@[ -f build/build.ninja ] || meson setup build -Dtests=true
	@meson configure build -Dtests=true
	ninja -C build
	rm -rf build/vm/doctor-*
	-vm/run doctor
	scripts/kernel-support build/vm/doctor-* >build/kernel-support.md
	cp build/kernel-support.md docs/kernel-support.md

file-operations:
	@scripts/deps vm
	@[ -f build/build.ninja ] || meson setup build -Dtests=true
	@meson configure build -Dtests=true
	ninja -C build
	rm -rf build/vm/matrix-*
	-vm/run matrix
	scripts/file-operations build/vm/matrix-*

SEED =
OPS = 1000000
stress:
	@scripts/deps check
	@PINLEASE_TEST_SEED='$(SEED)' PINLEASE_TEST_OPS='$(OPS)' scripts/check stress

bench:
	@scripts/deps build
	@$(MAKE) --no-print-directory build/build.ninja
	ninja -C build bench-programs daemon/pinleased
	@scale=full; [ -z "$(QUICK)" ] || scale=quick; bench/run.py build/bench/pinlease-bench --scale $$scale

bench-vm:
	@scripts/deps vm
	@[ -f build/build.ninja ] || meson setup build -Dtests=true
	ninja -C build bench/pinlease-bench daemon/pinleased
	vm/run -j 1 vm/optional/bench.job
	@bench/run.py --again build/vm/bench-7.2/results/results.json

bench-pins:
	@scripts/deps vm
	@[ -f build/build.ninja ] || meson setup build -Dtests=true
	ninja -C build bench/pinlease-bench tools/pinlease/pinlease
	vm/run -j 1 vm/optional/bench-pins.job
	@bench/run.py --again build/vm/bench-pins-7.2/results/results.json

model:
	@scripts/deps model
	@model/run
	@model/run-cache
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

.PHONY: help demo check check-vm kernel-support file-operations stress chaos bench bench-vm bench-pins model model-mutations fuzz build install format clean
