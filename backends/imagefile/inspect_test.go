package imagefile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
	"github.com/sregistry/sregistry-fs/backends/imagefile/imagetest"
)

// counting counts reads; not for concurrent use.
type counting struct {
	r       io.ReaderAt
	reads   int
	bytes   int
	largest int
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	c.bytes += len(p)
	c.largest = max(c.largest, len(p))
	return c.r.ReadAt(p, off)
}

func inspectFile(t testing.TB, path string) (imagefile.Inspect, *counting) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	c := &counting{r: f}
	got, err := imagefile.ReadInspect(t.Context(), c, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return got, c
}

func sameInspect(t testing.TB, got imagefile.Inspect, want imagetest.Inspect) {
	t.Helper()
	if !maps.Equal(got.Labels, want.Labels) {
		t.Errorf("labels %v, not %v", got.Labels, want.Labels)
	}
	for name, pair := range map[string][2]string{
		"deffile": {got.Deffile, want.Deffile}, "runscript": {got.Runscript, want.Runscript},
		"help": {got.Help, want.Help}, "environment": {got.Environment, want.Environment},
		"test": {got.Test, want.TestText},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, not %q", name, pair[0], pair[1])
		}
	}
}

// TestInspectCompressors reads the same facts through each compressor, from
// compressible files of more than one block, so that each decompressor works.
func TestInspectCompressors(t *testing.T) {
	want := imagetest.DefaultInspect()
	for i := range 20_000 {
		want.Help += fmt.Sprintf("line %d of the help\n", i)
	}
	for _, comp := range []string{"gzip", "xz", "zstd", "lz4", "lzo", "lzma"} {
		for name, more := range map[string][]string{
			"": nil, "/no fragments": {"-no-fragments"}, "/stored": {"-noI", "-noD", "-noF"}, "/lz4hc": {"-Xhc"}, "/bcj": {"-Xbcj", "x86"},
		} {
			if (name == "/lz4hc" && comp != "lz4") || (name == "/bcj" && comp != "xz") {
				continue
			}
			t.Run(comp+name, func(t *testing.T) {
				got, _ := inspectFile(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{
					Compression: comp, Inspect: &want, LaunchLine: true, BlockSize: 65536, MkfsArgs: more,
				}))
				sameInspect(t, got, want)
				if got.Source != imagefile.FromSquashfs {
					t.Errorf("source %q", got.Source)
				}
			})
		}
	}
}

func TestInspectSIF(t *testing.T) {
	want := imagetest.DefaultInspect()
	for name, tc := range map[string]struct {
		o      imagetest.Options
		source string
	}{
		"json":             {imagetest.Options{}, imagefile.FromSIF},
		"json, no deffile": {imagetest.Options{NoDeffile: true}, imagefile.FromSIF},
		"encrypted":        {imagetest.Options{Encrypted: true}, imagefile.FromSIF},
		"no json":          {imagetest.Options{NoJSON: true}, imagefile.FromSquashfs},
		"neither":          {imagetest.Options{NoJSON: true, NoDeffile: true}, imagefile.FromSquashfs},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := inspectFile(t, imagetest.SIF(t, t.TempDir(), tc.o))
			sameInspect(t, got, want)
			if got.Source != tc.source || got.Arch != "amd64" {
				t.Errorf("source %q, arch %q", got.Source, got.Arch)
			}
		})
	}
}

func TestInspectEncryptedWithoutJSON(t *testing.T) {
	dir := t.TempDir()
	got, _ := inspectFile(t, imagetest.SIF(t, dir, imagetest.Options{Encrypted: true, NoJSON: true}))
	sameInspect(t, got, imagetest.Inspect{Deffile: imagetest.DefaultInspect().Deffile})
	for _, path := range []string{
		imagetest.SIF(t, dir, imagetest.Options{Encrypted: true, NoJSON: true, NoDeffile: true, Name: "bare"}),
		imagetest.Ext3(t, dir, imagetest.Options{}),
	} {
		b := load(t, path)
		if _, err := imagefile.ReadInspect(t.Context(), bytes.NewReader(b), int64(len(b))); !errors.Is(err, backends.Unsupported) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestInspectOldLayout(t *testing.T) {
	got, _ := inspectFile(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{OldLayout: true}))
	all := imagetest.DefaultInspect()
	sameInspect(t, got, imagetest.Inspect{Runscript: all.Runscript, Environment: all.Environment})
}

func TestInspectNothing(t *testing.T) {
	got, _ := inspectFile(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{OldLayout: true, Inspect: &imagetest.Inspect{}}))
	sameInspect(t, got, imagetest.Inspect{})
}

// TestInspectEnvironment joins the files that apptainer inspect shows, in the
// order in which they are sourced, and no others.
func TestInspectEnvironment(t *testing.T) {
	got, _ := inspectFile(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Files: map[string]string{
		".singularity.d/env/10-docker2singularity.sh": "export A=1",
		".singularity.d/env/94-appsbase.sh":           "not this",
		".singularity.d/env/91-environment.sh":        "export C=3\n",
	}}))
	if want := "export A=1\n#!/bin/sh\nexport GREETING=hello\nexport C=3\n"; got.Environment != want {
		t.Errorf("%q, not %q", got.Environment, want)
	}
}

func TestInspectOddLabels(t *testing.T) {
	for text, want := range map[string]map[string]string{
		`{"a": 1, "b": true, "c": "x", "d": null, "e": {"f": [2]}}`: {"a": "1", "b": "true", "c": "x", "d": "null", "e": `{"f":[2]}`},
		`{"a": `: nil,
		`[1]`:    nil,
	} {
		got, _ := inspectFile(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Files: map[string]string{".singularity.d/labels.json": text}}))
		if !maps.Equal(got.Labels, want) {
			t.Errorf("%s: %v", text, got.Labels)
		}
	}
}

func TestInspectCutsLongValues(t *testing.T) {
	long := strings.Repeat("0123456789abcde\n", imagefile.MaxValue/16+1000)
	in := imagetest.Inspect{Help: long, Environment: long}
	got, _ := inspectFile(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Inspect: &in}))
	if got.Help != long[:imagefile.MaxValue] || got.Environment != long[:imagefile.MaxValue] {
		t.Errorf("%d bytes of help, %d of environment", len(got.Help), len(got.Environment))
	}
}

// TestInspectCutsDecodedValues: bytes that are no UTF-8 grow when JSON is decoded.
func TestInspectCutsDecodedValues(t *testing.T) {
	b := load(t, imagetest.SIF(t, t.TempDir(), imagetest.Options{Inspect: &imagetest.Inspect{Help: strings.Repeat("x", 900_000)}}))
	b = bytes.ReplaceAll(b, []byte("xxxxxxxxxx"), bytes.Repeat([]byte{0xFF}, 10))
	got, err := imagefile.ReadInspect(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil || len(got.Help) != imagefile.MaxValue {
		t.Errorf("%d bytes, %v", len(got.Help), err)
	}
}

// TestInspectReadsLittle: a large image with many files costs few reads.
func TestInspectReadsLittle(t *testing.T) {
	files := map[string]string{}
	for i := range 1000 {
		files[fmt.Sprintf("usr/lib/python/%d/%d.py", i%50, i)] = fmt.Sprintf("x = %d\n", i)
	}
	dir := t.TempDir()
	o := imagetest.Options{PadMB: 24, Files: files, NoJSON: true}
	for name, tc := range map[string]struct {
		path         string
		reads, bytes int
	}{
		"squashfs":         {imagetest.Squashfs(t, dir, o), 6, 512 << 10},
		"sif without json": {imagetest.SIF(t, dir, o), 6, 512 << 10},
		"sif with json":    {imagetest.SIF(t, dir, imagetest.Options{PadMB: 24, Name: "json.sif"}), 2, 128 << 10},
	} {
		got, c := inspectFile(t, tc.path)
		sameInspect(t, got, imagetest.DefaultInspect())
		t.Logf("%s: %d reads, %d bytes, largest %d", name, c.reads, c.bytes, c.largest)
		if c.reads > tc.reads || c.bytes > tc.bytes || c.largest > 1<<20 {
			t.Errorf("%s: %d reads of %d bytes, largest %d", name, c.reads, c.bytes, c.largest)
		}
	}
}

// TestInspectManyFiles walks tables too large to fetch at once.
func TestInspectManyFiles(t *testing.T) {
	files := map[string]string{}
	for i := range 6000 {
		files[fmt.Sprintf("%d/%0200d", i%30, i)] = ""
	}
	path := imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Files: files, MkfsArgs: []string{"-noI"}})
	tables := identify(t, load(t, path)).Tables
	if n := tables[len(tables)-1].Len; n <= 1<<20 {
		t.Fatalf("tables of only %d bytes", n)
	}
	got, c := inspectFile(t, path)
	sameInspect(t, got, imagetest.DefaultInspect())
	if c.reads > 10 || c.bytes > 512<<10 || c.largest > 128<<10 {
		t.Errorf("%d reads, %d bytes, largest %d", c.reads, c.bytes, c.largest)
	}
}

func TestInspectCancelled(t *testing.T) {
	b := load(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := imagefile.ReadInspect(ctx, bytes.NewReader(b), int64(len(b))); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestInspectTruncated: a cut image gives its facts or an error, never a panic
// and never other facts.
func TestInspectTruncated(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{
		imagetest.Squashfs(t, dir, imagetest.Options{Compression: "zstd"}),
		imagetest.SIF(t, dir, imagetest.Options{NoJSON: true}),
	} {
		b := load(t, path)
		for n := 0; n < len(b); n += 7 {
			got, err := imagefile.ReadInspect(t.Context(), bytes.NewReader(b[:n]), int64(n))
			if err == nil && got.Runscript != "" {
				sameInspect(t, got, imagetest.DefaultInspect())
			}
		}
	}
}

// TestInspectDamaged flips bytes in images of each compressor: any error but
// the reader's own, no panic, and bounded work.
func TestInspectDamaged(t *testing.T) {
	for _, comp := range []string{"gzip", "xz", "zstd", "lz4", "lzo", "lzma"} {
		t.Run(comp, func(t *testing.T) {
			b := load(t, imagetest.Squashfs(t, t.TempDir(), imagetest.Options{Compression: comp}))
			used, _ := superblock(b, 0)
			for at := int64(0); at < used; at += 3 {
				for _, bit := range []byte{0x01, 0x80, 0xFF} {
					b[at] ^= bit
					c := &counting{r: bytes.NewReader(b)}
					_, err := imagefile.ReadInspect(t.Context(), c, int64(len(b)))
					b[at] ^= bit
					if kind := backends.KindOf(err); err != nil && kind != backends.Corrupt && kind != backends.Invalid {
						t.Fatalf("byte %d: %v", at, err)
					}
					if c.bytes > 32<<20 {
						t.Fatalf("byte %d: read %d bytes", at, c.bytes)
					}
				}
			}
		})
	}
}

func FuzzReadInspect(f *testing.F) {
	dir := f.TempDir()
	for _, comp := range []string{"gzip", "xz", "zstd", "lz4", "lzo", "lzma"} {
		f.Add(load(f, imagetest.Squashfs(f, dir, imagetest.Options{Compression: comp, Name: comp})))
	}
	f.Add(load(f, imagetest.SIF(f, dir, imagetest.Options{})))
	f.Add(load(f, imagetest.SIF(f, dir, imagetest.Options{NoJSON: true, Name: "nojson"})))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := imagefile.ReadInspect(t.Context(), bytes.NewReader(b), int64(len(b)))
		if err != nil && backends.KindOf(err) == backends.Other {
			t.Errorf("an error without a kind: %v", err)
		}
		for _, s := range []string{got.Deffile, got.Runscript, got.Help, got.Environment, got.Test} {
			if len(s) > imagefile.MaxValue {
				t.Errorf("a value of %d bytes", len(s))
			}
		}
	})
}
