//go:build bench

package bench

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The bars: what is asked of a mount, held against what else can be done on
// the same machine with the same bytes.
const (
	barColdOfCurl   = 0.85 // speed of a cold read from end to end
	barCPUOfCurl    = 2.5  // processor time of it
	barMemory       = 64.0 // MB above idle while it streams
	barFirstByte    = 5.0  // ms, from open
	barRootOfPlain  = 0.9  // warm reads by root, held against the plain file
	barUserOfSplice = 0.9  // warm reads by a user, held against a file system that only splices
	barMovedOfU     = 1.25 // bytes to start a program, held against what it touches
	barTimeOfCurl   = 1.0  // time to start a program, held against fetching the image first
)

type reportInput struct {
	large                 *image
	programs              []*image
	contenders            []*contender
	started               time.Time
	took                  time.Duration
	loadBefore, loadAfter string
}

// median gives the middle figure of all rounds; ok is false if there is none.
func (r results) median(table, row, column string) (v float64, ok bool) {
	all := slices.Sorted(slices.Values(r[cell{table, row, column}]))
	if len(all) == 0 {
		return 0, false
	}
	if n := len(all); n%2 == 0 {
		return (all[n/2-1] + all[n/2]) / 2, true
	}
	return all[len(all)/2], true
}

// show formats a median, with the least and the most if spread.
func (r results) show(table, row, column, format string, spread bool) string {
	v, ok := r.median(table, row, column)
	if !ok {
		return "—"
	}
	text := fmt.Sprintf(format, v)
	if all := r[cell{table, row, column}]; spread && len(all) > 1 {
		text += fmt.Sprintf(" ("+format+"–"+format+")", slices.Min(all), slices.Max(all))
	}
	return text
}

// ratio formats a median as a part of another row's.
func (r results) ratio(table, row, of, column string) string {
	v, ok := r.median(table, row, column)
	base, okBase := r.median(table, of, column)
	if !ok || !okBase || base == 0 {
		return "—"
	}
	return fmt.Sprintf("%.2f", v/base)
}

// page is Markdown under construction.
type page struct{ strings.Builder }

func (p *page) say(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

func (p *page) row(cells ...string) { p.say("| %s |", strings.Join(cells, " | ")) }

func (p *page) head(cells ...string) {
	p.row(cells...)
	p.say("|%s", strings.Repeat("---|", len(cells)))
}

func (b *bench) report(in reportInput) string {
	p := &page{}
	p.say("# Benchmarks")
	p.say("")
	p.say("Written by `make bench BENCH_WRITE=1`; `cmd/sregistry-fs/bench` has what is measured and how. All programs")
	p.say("read the same bytes, in alternation; figures are medians of %d rounds, with the least and the most of them in parentheses.", b.cfg.rounds)
	p.say("")
	b.machine(p, in)
	b.bars(p, in)
	b.coldPage(p, in)
	b.warmPage(p, in)
	for _, img := range in.programs {
		b.runPage(p, in, img)
	}
	return p.String()
}

func (b *bench) machine(p *page, in reportInput) {
	var u unix.Utsname
	_ = unix.Uname(&u)
	p.say("| | |")
	p.say("|---|---|")
	p.row("processor", fmt.Sprintf("%s, %d cores", processor(), runtime.NumCPU()))
	p.row("kernel", unix.ByteSliceToString(u.Release[:])+", "+runtime.GOARCH)
	p.row("date", fmt.Sprintf("%s, took %s", in.started.UTC().Format("2006-01-02 15:04 MST"), in.took.Round(time.Second)))
	p.row("load average before, after", in.loadBefore+", "+in.loadAfter)
	p.row("version", firstLine("git", "describe", "--tags", "--always", "--dirty"))
	user := "who ran it"
	if b.user != nil {
		user = b.user.name
	}
	p.row("users", "root and, for rows that say so, "+user)
	tools := []string{firstLine("nginx", "-v"), firstLine("curl", "--version"), firstLine("rclone", "version"), firstLine("s3fs", "--version")}
	if b.servers.noS3 == "" {
		tools = append(tools, "versitygw "+b.servers.s3Version)
	}
	p.row("compared with", strings.Join(slices.DeleteFunc(tools, func(s string) bool { return s == "" }), "; "))
	p.say("")
	if b.cfg.quick {
		p.say("**This was a quick run that shows that the benchmark works; its figures mean nothing.**")
		p.say("")
	}
}

// bars holds the medians against what is asked.
func (b *bench) bars(p *page, in reportInput) {
	p.say("## What is asked, and what was seen")
	p.say("")
	p.head("what", "bar", "seen", "")
	line := func(what, bar string, value, limit float64, ok, atLeast bool, format string) {
		if !ok {
			p.row(what, bar, "—", "not measured")
			return
		}
		verdict := "met"
		if atLeast && value < limit || !atLeast && value > limit {
			verdict = "**not met**"
		}
		p.row(what, bar, fmt.Sprintf(format, value), verdict)
	}
	against := func(what, table, row, of, column string, limit float64, atLeast bool) {
		v, ok := b.results.median(table, row, column)
		base, okBase := b.results.median(table, of, column)
		sign := "≤"
		if atLeast {
			sign = "≥"
		}
		line(what, fmt.Sprintf("%s %.2f × %s", sign, limit, of), v/cmp.Or(base, 1), limit, ok && okBase, atLeast, "%.2f ×")
	}
	absolute := func(what, table, row, column, unit string, limit float64) {
		v, ok := b.results.median(table, row, column)
		line(what, fmt.Sprintf("≤ %g %s", limit, unit), v, limit, ok, false, "%.1f "+unit)
	}
	for _, c := range in.contenders {
		if !c.ours {
			continue
		}
		against("cold read, speed: "+c.name, coldTable, c.name, curlFile, speed, barColdOfCurl, true)
		against("cold read, processor: "+c.name, coldTable, c.name, curlFile, cpu, barCPUOfCurl, false)
		absolute("cold read, memory above idle: "+c.name, coldTable, c.name, memory, "MB", barMemory)
		absolute("cold read, first byte: "+c.name, coldTable, c.name, first, "ms", barFirstByte)
	}
	for _, c := range in.contenders {
		if !c.ours || !c.warm {
			continue
		}
		of, limit := bareSplice, barUserOfSplice
		if b.user != nil && c.who == nil {
			of, limit = localFile, barRootOfPlain
		}
		for _, column := range warmColumns() {
			against("warm read, "+column+": "+c.name, warmTable, c.name, of, column, limit, true)
		}
	}
	for _, img := range in.programs {
		for _, c := range in.contenders {
			if !c.ours || !c.run {
				continue
			}
			v, ok := b.results.median(img.name, c.name, moved)
			u := float64(img.touched) / 1e6
			line("cold start over the slow link, bytes moved, "+img.name+": "+c.name, fmt.Sprintf("≤ %.2f × touched", barMovedOfU),
				v/cmp.Or(u, 1), barMovedOfU, ok && u > 0, false, "%.2f ×")
			against("cold start over the slow link, time, "+img.name+": "+c.name, img.name, c.name, curlFile, seconds, barTimeOfCurl, false)
		}
	}
	p.say("")
}

func warmColumns() []string {
	return []string{sequentialFresh, sequentialAgain, randomFresh, randomAgain}
}

func (b *bench) coldPage(p *page, in reportInput) {
	p.say("## Cold: from end to end")
	p.say("")
	p.say("An image of %d MB, %s, read as `dd bs=1M` reads it, from servers on this machine, with nothing cached", in.large.size/1e6, in.large.what)
	p.say("on the client's side. The name was looked up before. Processor time is the file system's (or curl's), with verifying and keeping")
	p.say("the image; memory is its peak above what it had when it was mounted.")
	p.say("")
	p.head("", "MB/s", "of curl", "of the plain file", "first byte, ms", "processor s/GB", "memory, MB", "requests", "bytes sent / size")
	for _, c := range in.contenders {
		if !c.cold {
			continue
		}
		if c.missing != "" {
			p.row(c.name, c.missing, "", "", "", "", "", "", "")
			continue
		}
		show := func(column, format string) string { return b.results.show(coldTable, c.name, column, format, false) }
		p.row(c.name, b.results.show(coldTable, c.name, speed, "%.0f", true),
			b.results.ratio(coldTable, c.name, curlFile, speed), b.results.ratio(coldTable, c.name, localFile, speed),
			show(first, "%.1f"), show(cpu, "%.2f"), show(memory, "%.0f"), show(requests, "%.0f"), show(sent, "%.2f"))
	}
	p.say("")
}

func (b *bench) warmPage(p *page, in reportInput) {
	p.say("## Warm: what is in the cache already")
	p.say("")
	p.say("The same image, complete in each program's own cache. Each pair of columns is a fresh mount, so that the kernel")
	p.say("has none of it, and then the same again. Random reads take every 128 KiB piece once, in shuffled order. A user's mount is held")
	p.say("against a file system that does nothing but splice one file.")
	p.say("")
	p.head("", "sequential, MB/s", "again", "of the plain file", "random, reads/s", "again", "of the plain file", "of bare splice (four columns)")
	for _, c := range in.contenders {
		if !c.warm {
			continue
		}
		if c.missing != "" {
			p.row(c.name, c.missing, "", "", "", "", "", "")
			continue
		}
		show := func(column string) string { return b.results.show(warmTable, c.name, column, "%.0f", true) }
		of := func(base string, columns ...string) string {
			var all []string
			for _, column := range columns {
				all = append(all, b.results.ratio(warmTable, c.name, base, column))
			}
			return strings.Join(all, ", ")
		}
		p.row(c.name, show(sequentialFresh), show(sequentialAgain), of(localFile, sequentialFresh, sequentialAgain),
			show(randomFresh), show(randomAgain), of(localFile, randomFresh, randomAgain), of(bareSplice, warmColumns()...))
	}
	p.say("")
}

func (b *bench) runPage(p *page, in reportInput, img *image) {
	u := float64(img.touched) / 1e6
	p.say("## Cold start over a slow link: %s", img.what)
	p.say("")
	p.say("%.0f Mbit/s for all connections together and %s there and back; an image of %.0f MB. Mount what is inside with squashfuse, start its Python,",
		linkRate*8/1e6, 2*linkDelay, float64(img.size)/1e6)
	p.say("`import json, email, http.client`, then `ls -lR` of its library. A local run touches %.1f MB, counted in 128 KiB chunks as squashfuse asks", u)
	p.say("for them (over a file system with direct I/O, so without read-ahead), which the link takes %.1f s to carry. Bytes moved are", u*1e6/linkRate)
	p.say("those on the link, both ways, headers included, until the unmount.")
	p.say("")
	p.head("", "seconds", "of curl", "MB moved", "of touched", "requests", "processor s", "peak memory, MB")
	for _, c := range in.contenders {
		if !c.run {
			continue
		}
		if c.missing != "" {
			p.row(c.name, c.missing, "", "", "", "", "", "")
			continue
		}
		part := "—"
		if v, ok := b.results.median(img.name, c.name, moved); ok && u > 0 {
			part = fmt.Sprintf("%.2f", v/u)
		}
		show := func(column, format string) string { return b.results.show(img.name, c.name, column, format, false) }
		p.row(c.name, b.results.show(img.name, c.name, seconds, "%.2f", true), b.results.ratio(img.name, c.name, curlFile, seconds),
			show(moved, "%.1f"), part, show(requests, "%.0f"), show(cpu, "%.2f"), show(memory, "%.0f"))
	}
	p.say("")
}

// firstLine gives the first line that a tool prints, or "".
func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(strings.TrimSpace(line), "nginx version: ")
}

func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:1], "")
}
