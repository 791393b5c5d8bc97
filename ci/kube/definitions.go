// The API server of definitions, as k8s.io/apiextensions-apiserver makes it, which also publishes what it serves as OpenAPI v2: without
// that it publishes nothing at all, and `kubectl explain` knows no field.
package main

import (
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/cmd/server/options"
	"k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	namer "k8s.io/apiserver/pkg/endpoints/openapi"
	generic "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/component-base/cli"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/spf13/cobra"
)

func main() {
	o := options.NewCustomResourceDefinitionsServerOptions(os.Stdout, os.Stderr)
	command := &cobra.Command{
		Use:          "apiextensions-apiserver",
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return o.ServerRunOptions.ComponentGlobalsRegistry.Set()
		},
		RunE: func(command *cobra.Command, _ []string) error {
			if err := o.Complete(); err != nil {
				return err
			}
			if err := o.Validate(); err != nil {
				return err
			}
			config, err := o.Config()
			if err != nil {
				return err
			}
			published := generic.DefaultOpenAPIConfig(
				openapi.GetOpenAPIDefinitions, namer.NewDefinitionNamer(apiserver.Scheme, scheme.Scheme))
			// The server in front has those paths itself, and takes nothing from one that has them too.
			published.PostProcessSpec = func(own *spec.Swagger) (*spec.Swagger, error) {
				own.Paths = &spec.Paths{Paths: map[string]spec.PathItem{}}
				return own, nil
			}
			config.GenericConfig.OpenAPIConfig = published
			server, err := config.Complete().New(generic.NewEmptyDelegate())
			if err != nil {
				return err
			}
			return server.GenericAPIServer.PrepareRun().RunWithContext(command.Context())
		},
	}
	command.SetContext(generic.SetupSignalContext())
	o.AddFlags(command.Flags())
	os.Exit(cli.Run(command))
}
