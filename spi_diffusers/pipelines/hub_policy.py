"""The SPI policy of the installed package: `spi_policy.py` with checked loading and publishing."""

from spi_diffusers.pipelines import spi_policy
from spi_diffusers.pipelines.extraction import SAFETY_WEIGHT_GRID
from spi_diffusers.pipelines.loading import CheckedLoading


class SPIPolicyPipeline(CheckedLoading, spi_policy.SPIPolicyPipeline):
    """A safe policy, see `spi_policy.SPIPolicyPipeline`, with checked loading and with publishing.

    A saved policy names its class, so both have one name; it acts the same with either.
    """

    publishable = True

    @property
    def extractions(self) -> tuple[str, ...]:
        """Ways in which it can act: without an evaluation critic, only the paper's; "fast" by its student."""
        if self.evaluation_critic is None:
            return ("reward",)
        return ("safe", "reward") if self.student is None else ("safe", "reward", "fast")

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        create_pr: bool = False,
        *,
        revision: str = "main",
        tag: str | None = None,
        license: str | None = None,
    ) -> str:
        """Publish the policy by one verified commit, with its code and card; as `spi publish` does.

        diffusers' own would replace the card by a blank template, and make a repository that only this
        class can load.

        Args:
            repo_id: `org/name`; made if it does not exist.
            commit_message: What the commit is called.
            private: Make the repository private, if it has to be made.
            token: Access token; by default that of `hf auth login`.
            create_pr: Open a pull request instead of changing the branch.
            revision: Branch; may be new.
            tag: Name for what is published.
            license: Of the weights, as the Hub names licenses, such as "cc-by-nc-4.0"; by default
                "apache-2.0".

        Returns:
            Address of the commit, or of the pull request.

        Raises:
            HubError: Nothing visible has changed, unless the message says so.
            ValueError: The policy cannot act, or a tag was asked for together with a pull request.
        """
        # Publishing stands above this package, so it is imported by whoever publishes.
        from spi_diffusers.hub.publish import publish_pipeline
        from spi_diffusers.hub.upload_plan import UploadOptions

        options = UploadOptions(
            branch=revision,
            tag=tag,
            message=commit_message or "Publish policy",
            private=bool(private),
            create_pr=create_pr,
            token=token,
        )
        return publish_pipeline(self, repo_id, options, license=license).url

    def _how_it_acts(self) -> str:
        steps = self.scheduler.config.num_train_timesteps
        weights = len(SAFETY_WEIGHT_GRID)
        margin = self.config.cost_margin
        tuned = "" if margin == 1.0 else f", cost_margin {margin:g}"
        return f"takes a cost limit at run time; {weights} safety weights, {steps} denoising steps{tuned}"
