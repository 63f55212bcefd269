package main

import (
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sregistry/sregistry-fs/backends"
)

func (a *app) backendsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "backends [BACKEND]",
		Short: "List the kinds of registries, or the settings of one",
		Long: `List the kinds of registries, or the settings of one: the name for --option, the
environment variable, which is also the key in the secrets file, and the default.

` + exitCodes,
		Example: `  sregistry-fs backends
  sregistry-fs backends registry`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				d, err := a.driver(args[0])
				if err != nil {
					return err
				}
				return a.describe(d)
			}
			out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
			drivers := slices.SortedFunc(slices.Values(a.drivers), func(x, y backends.Driver) int { return strings.Compare(x.Scheme, y.Scheme) })
			for _, d := range drivers {
				fmt.Fprintf(out, "%s\t%s\n", specForm(d), d.Summary)
			}
			return out.Flush()
		},
	}
}

// specForm gives the driver's mount spec: "dir[:/PATH]".
func specForm(d backends.Driver) string {
	if d.Location == "" {
		return d.Scheme
	}
	return d.Scheme + "[:" + d.Location + "]"
}

func (a *app) describe(d backends.Driver) error {
	fmt.Fprintf(a.stdout, "%s: %s\n", specForm(d), d.Summary)
	if len(d.Options) == 0 {
		return nil
	}
	fmt.Fprintln(a.stdout)
	out := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, o := range d.Options {
		name, usage := o.Name, o.Usage
		if o.Secret {
			name = "-"
			usage += " (a credential: not on the command line)"
		}
		if o.Default != "" {
			usage += " (default " + o.Default + ")"
		}
		fmt.Fprintf(out, "%s\t%s\t%s\n", name, o.Env, usage)
	}
	return out.Flush()
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  sregistry-fs version",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Fprintln(a.stdout, "sregistry-fs", version, buildOf(debug.ReadBuildInfo()))
			return nil
		},
	}
}

// buildOf gives the compiler and, if it is known, the commit.
func buildOf(info *debug.BuildInfo, ok bool) string {
	if !ok {
		return ""
	}
	words := []string{info.GoVersion}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			words = append(words, s.Value[:min(12, len(s.Value))])
		}
	}
	return "(" + strings.Join(words, ", ") + ")"
}
