# SPDX-License-Identifier: GPL-2.0-or-later
# A compiler run: make, shells, gcc, cc1, as and ld come and go.
. /rmaplab/common.sh

mkdir -p /tmp/build
cd /tmp/build
for i in 1 2 3 4 5 6 7 8; do
    {
        echo '#include <stdio.h>'
        echo '#include <stdlib.h>'
        echo '#include <string.h>'
        echo '#include <math.h>'
        j=0
        while [ $j -lt 150 ]; do
            echo "int f${i}_$j(int n, int *a) { int s = $j; for (int k = 0; k < n; k++) { if (a[k] % $((j + 2)) == 0)"
            echo "s += a[k] * $j; else s ^= abs(a[k]) + (int)strlen(\"$i $j\"); } qsort(a, n, sizeof(*a), 0); return s; }"
            j=$((j + 1))
        done
    } >unit$i.c
done
cat >Makefile <<'MAKE'
objects := $(foreach i,1 2 3 4 5 6 7 8,unit$(i).o)
all.a: $(objects)
	ar rc $@ $^
%.o: %.c
	gcc -O2 -c -o $@ $<
MAKE
(while :; do
    make -s -j3
    rm -f ./*.o all.a
done) &
sleep 3
moment 1
sleep 1.3
moment 2
sleep 1.7
moment 3
go_on
