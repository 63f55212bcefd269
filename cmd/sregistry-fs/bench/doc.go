// Package bench measures reading images through a mount against the plain
// file, curl, rclone and s3fs, on the same bytes and in alternation, and prints
// the tables of docs/benchmarks.md. It is not part of the tests: `make bench`
// builds it, with the tag "bench". It asserts that the bytes are right, never
// that they are fast.
//
// What is measured and against which bar: report_test.go. The environment that
// changes a run: config in bench_test.go. How to add a program to compare
// with: contenders_test.go.
package bench
