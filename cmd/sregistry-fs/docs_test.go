package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/all"
)

// flagTable is the table of flags in docs/config.md, made from the flags.
func flagTable(a *app) string {
	type row struct {
		flag     *pflag.Flag
		commands []string
	}
	rows := map[string]*row{}
	add := func(command string, f *pflag.Flag) {
		key := f.Name + "\x00" + f.Shorthand + "\x00" + f.Usage
		if f.Hidden || f.Name == "help" {
			return
		}
		if rows[key] == nil {
			rows[key] = &row{flag: f}
		}
		rows[key].commands = append(rows[key].commands, command)
	}
	root := a.command()
	root.PersistentFlags().VisitAll(func(f *pflag.Flag) { add("all", f) })
	for _, c := range root.Commands() {
		if c.Name() != "help" && c.Name() != "completion" {
			c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { add(c.Name(), f) })
		}
	}
	var b strings.Builder
	b.WriteString("| flag | environment | default | commands | meaning |\n|---|---|---|---|---|\n")
	sorted := slices.SortedFunc(maps.Values(rows), func(x, y *row) int {
		return cmp.Or(strings.Compare(x.flag.Name, y.flag.Name), strings.Compare(x.commands[0], y.commands[0]))
	})
	for _, r := range sorted {
		name := "`--" + r.flag.Name + "`"
		if r.flag.Shorthand != "" {
			name = "`-" + r.flag.Shorthand + "`, " + name
		}
		env, def := "", r.flag.DefValue
		if e := flagEnv(r.flag); e != "" {
			env = "`" + e + "`"
		}
		if def == "0" || def == "false" {
			def = ""
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", name, env, def, strings.Join(r.commands, ", "), strings.ReplaceAll(r.flag.Usage, "`", ""))
	}
	return b.String()
}

// optionTable is the table of the backends' options in docs/config.md.
func optionTable(drivers []backends.Driver) string {
	var b strings.Builder
	b.WriteString("| backend | option | environment, key in the secrets file | default | meaning |\n|---|---|---|---|---|\n")
	sorted := slices.SortedFunc(slices.Values(drivers), func(x, y backends.Driver) int { return strings.Compare(x.Scheme, y.Scheme) })
	for _, d := range sorted {
		for _, o := range d.Options {
			name := "`" + o.Name + "`"
			if o.Secret {
				name = "(credential)"
			}
			fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", d.Scheme, name, o.Env, o.Default, o.Usage)
		}
	}
	return b.String()
}

// The tables in docs/config.md are the flags and options of the program. Run
// with -update to write them anew.
func TestConfigPage(t *testing.T) {
	const page = "../../docs/config.md"
	a := &app{drivers: all.Drivers(), getenv: env(nil), now: time.Now}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	want := string(text)
	for name, table := range map[string]string{"flags": flagTable(a), "options": optionTable(a.drivers)} {
		begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
		before, rest, ok := strings.Cut(want, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no place for the %s", page, name)
		}
		want = before + begin + table + end + after
	}
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(text) {
		t.Errorf("%s differs from the program; go test ./cmd/... -update writes\n%s", page, want)
	}
}

// Twenty-five settings are as many as a person can look through.
func TestFewSettings(t *testing.T) {
	if n := reflect.TypeFor[Config]().NumField(); n > 25 {
		t.Errorf("%d settings", n)
	}
}
